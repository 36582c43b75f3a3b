"""`moh-deploy tune`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("tune")
@options.takes(*options.TUNE)
def command(as_json: bool, **given: object) -> None:
    """Measure on this machine how each MoH layer of the package DIR runs fastest, and write that
    into the package: dense where skipping heads does not pay."""
    from moh_deploy.api.tune import tune

    print_answer(lambda progress: tune(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
