"""`moh-deploy bisect`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer, with_progress


@click.command("bisect")
@options.takes(*options.BISECT)
def command(as_json: bool, **given: object) -> None:
    """Find the first layer and node at which the package DIR parts from the original model, and
    which nodes of a package in half precision have to be in float32: exit 0 if nothing diverges or
    the repaired package was written, 1 if not."""
    from moh_deploy.api.bisect import bisect

    report = with_progress(
        lambda progress: bisect(**given, progress=progress),  # type: ignore[arg-type]
        as_json=as_json,
    )
    print_answer(report, as_json=as_json)
