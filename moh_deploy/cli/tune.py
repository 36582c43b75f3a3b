"""`moh-deploy tune`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_report, with_progress


@click.command("tune")
@options.takes(*options.TUNE)
def command(as_json: bool, **given: object) -> None:
    """Measure on this machine how each MoH layer of the package DIR runs fastest, and write that
    into the package: dense where skipping heads does not pay."""
    from moh_deploy.api.tune import tune

    report = with_progress(
        lambda progress: tune(**given, progress=progress),  # type: ignore[arg-type]
        as_json=as_json,
    )
    print_report(report, as_json=as_json)
