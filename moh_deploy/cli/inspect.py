"""`moh-deploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli.common_options import json_option, kernels_option, package_argument
from moh_deploy.cli.output import carry_out, print_report

if TYPE_CHECKING:
    from moh_deploy.runtime.runner import Kernels


@click.command("inspect")
@package_argument
@kernels_option
@json_option
def command(package: Path, kernels: Kernels, as_json: bool) -> None:
    """Show the MoH layers of the package DIR, what runs them, and how much work they can skip."""
    from moh_deploy.api.inspect import inspect

    report = carry_out(
        lambda progress: inspect(package, kernels=kernels, progress=progress), as_json=as_json
    )
    print_report(report, as_json=as_json)
