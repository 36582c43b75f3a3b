"""`moh-deploy precision`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli.common_options import json_option, package_argument
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.output import carry_out, print_report


@click.command("precision")
@package_argument
@click.option(
    "--to", required=True, metavar="fp16|bf16", help="What products and activations become."
)
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="DIR",
    type=FILE_PATH,
    help="The package directory to write.",
)
@json_option
def command(package: Path, to: str, output: Path, as_json: bool) -> None:
    """Write the package DIR again in lower precision, as a graph whose types say where: routers,
    norms and what would overflow stay in float32."""
    from moh_deploy.api.precision import precision

    report = carry_out(
        lambda progress: precision(package, to=to, output=output, progress=progress),
        as_json=as_json,
    )
    print_report(report, as_json=as_json)
