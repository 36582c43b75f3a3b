"""`moh-deploy precision`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("precision")
@options.takes(*options.PRECISION)
def command(as_json: bool, **given: object) -> None:
    """Write the package DIR again in lower precision, as a graph whose types say where: routers,
    norms and what would overflow stay in float32."""
    from moh_deploy.api.precision import precision

    print_answer(lambda progress: precision(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
