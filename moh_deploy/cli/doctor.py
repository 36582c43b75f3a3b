"""`moh-deploy doctor`."""

from __future__ import annotations

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.output import print_answer


@click.command("doctor")
@options.takes(
    click.argument("artefact", metavar="[DIR]", required=False, type=values.FILE_PATH),
    options.path("--plugin", "FILE", "The plugin library for TensorRT, if not the installation's."),
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Say what is installed, what can be built and run on this machine, and what closes each gap:
    exit 0 if models can be exported and packages run here, 1 if not. Other gaps are information.
    With a package or an engine DIR, it is loaded, too, and has to run."""
    from moh_deploy.api.doctor import doctor

    print_answer(lambda progress: doctor(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
