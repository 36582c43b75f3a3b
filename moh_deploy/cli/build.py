"""`moh-deploy build`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.many_values import ManyValues
from moh_deploy.cli.output import print_answer, with_progress


@click.command("build", cls=ManyValues, many={"--compute-capability": r"\d+\.\d+"})
@options.takes(*options.BUILD)
def command(as_json: bool, **given: object) -> None:
    """Build an engine of TensorRT or TensorRT-RTX from the package DIR."""
    from moh_deploy.api.build import build

    report = with_progress(
        lambda progress: build(**given, progress=progress),  # type: ignore[arg-type]
        as_json=as_json,
    )
    print_answer(report, as_json=as_json)
