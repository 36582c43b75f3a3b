"""`moh-deploy prune`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("prune")
@options.takes(*options.PRUNE)
def command(as_json: bool, **given: object) -> None:
    """Write the package DIR with the same heads for every token: those that are used most. The
    weights of the others are cut, and there is no router. The plain rival of routing: another model
    than the original, proven equal to it with these gates fed."""
    from moh_deploy.api.prune import prune

    print_answer(lambda progress: prune(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
