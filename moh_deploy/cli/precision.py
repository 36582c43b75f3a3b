"""`moh-deploy precision`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_report, with_progress


@click.command("precision")
@options.takes(*options.PRECISION)
def command(as_json: bool, **given: object) -> None:
    """Write the package DIR again in lower precision, as a graph whose types say where: routers,
    norms and what would overflow stay in float32."""
    from moh_deploy.api.precision import precision

    report = with_progress(
        lambda progress: precision(**given, progress=progress),  # type: ignore[arg-type]
        as_json=as_json,
    )
    print_report(report, as_json=as_json)
