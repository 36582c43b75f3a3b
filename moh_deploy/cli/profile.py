"""`moh-deploy profile`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("profile")
@options.takes(*options.PROFILE)
def command(as_json: bool, **given: object) -> None:
    """Record what the routers of the package DIR do with traffic that is known to be good, and how
    far chance strays from it: the reference of `moh-deploy watch`."""
    from moh_deploy.api.profile import profile

    print_answer(lambda progress: profile(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
