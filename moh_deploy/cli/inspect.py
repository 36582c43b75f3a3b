"""`moh-deploy inspect`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("inspect")
@options.takes(options.PACKAGE, options.KERNELS, options.JSON)
def command(as_json: bool, **given: object) -> None:
    """Show the MoH layers of the package DIR, what runs them, and how much work they can skip."""
    from moh_deploy.api.inspect import inspect

    print_answer(lambda progress: inspect(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
