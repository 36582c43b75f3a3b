"""`moh-deploy inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli.common_options import json_option, package_argument
from moh_deploy.cli.output import carry_out, print_json, print_rich


@click.command("inspect")
@package_argument
@json_option
def command(package: Path, as_json: bool) -> None:
    """Show the MoH layers of the package DIR, what runs them, and how much work they can skip."""
    from moh_deploy.jobs.inspect import inspect

    report = carry_out(lambda progress: inspect(package, progress=progress), as_json=as_json)
    if as_json:
        print_json(report.to_json())
    else:
        print_rich(report)
