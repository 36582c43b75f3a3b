"""`moh-deploy bisect`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("bisect")
@options.takes(*options.BISECT)
def command(as_json: bool, **given: object) -> None:
    """Find the first layer and node at which the package DIR parts from the original model, and
    which nodes of a package in half precision have to be in float32: exit 0 if nothing diverges or
    the repaired package was written, 1 if not."""
    from moh_deploy.api.bisect import bisect

    print_answer(lambda progress: bisect(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
