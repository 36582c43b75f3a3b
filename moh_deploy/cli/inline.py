"""`moh-deploy inline`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("inline")
@options.takes(
    options.PACKAGE,
    options.output("The ONNX file to write; an earlier one is replaced.", metavar="FILE.onnx"),
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Write the model of the package DIR to one ONNX file in standard operators only, proven equal:
    for runtimes that know no functions. It computes every head."""
    from moh_deploy.api.inline import inline

    print_answer(lambda progress: inline(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
