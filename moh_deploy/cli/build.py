"""`moh-deploy build`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.many_values import ManyValues
from moh_deploy.cli.output import print_answer


@click.command("build", cls=ManyValues, many={"--compute-capability": r"\d+\.\d+"})
@options.takes(*options.BUILD)
def command(as_json: bool, **given: object) -> None:
    """Build an engine of TensorRT or TensorRT-RTX from the package DIR."""
    from moh_deploy.api.build import build

    print_answer(lambda progress: build(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
