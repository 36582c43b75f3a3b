"""`moh-deploy doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli.common_options import json_option
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.output import carry_out, print_answer


@click.command("doctor")
@click.argument("artefact", metavar="[DIR]", required=False, type=FILE_PATH)
@click.option(
    "--plugin",
    metavar="FILE",
    type=FILE_PATH,
    help="The plugin library for TensorRT, if not the installation's.",
)
@json_option
def command(artefact: Path | None, plugin: Path | None, as_json: bool) -> None:
    """Say what is installed, what can be built and run on this machine, and what closes each gap:
    exit 0 if models can be exported and packages run here, 1 if not. Other gaps are information.
    With a package or an engine DIR, it is loaded, too, and has to run."""
    from moh_deploy.api.doctor import doctor

    report = carry_out(
        lambda progress: doctor(artefact, plugin=plugin, progress=progress), as_json=as_json
    )
    print_answer(report, as_json=as_json)
