"""`moh-deploy bisect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli.common_options import (
    json_option,
    kernels_option,
    package_argument,
    policy_option,
)
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.output import carry_out, print_answer

if TYPE_CHECKING:
    from moh_deploy.runtime.runner import Kernels


@click.command("bisect")
@package_argument
@click.option(
    "--reference",
    metavar="DIR",
    type=FILE_PATH,
    help="A float32 package of the same model: the one that this one was lowered from, or one that"
    " is right. It names the node and what is different about it, and gives float32 weights.",
)
@click.option(
    "--output",
    "-o",
    metavar="DIR",
    type=FILE_PATH,
    help="Write the package again with the nodes in float32 that need it.",
)
@click.option(
    "--to",
    metavar="fp16|bf16",
    help="Lower a float32 package first, as `precision` does, which writes none that is not right.",
)
@click.option(
    "--target",
    metavar="SHARE",
    type=float,
    help="How far outputs may be off, as a share of their largest value, such as 0.001. Default:"
    " what `verify` allows.",
)
@click.option(
    "--max-runs",
    metavar="N",
    type=int,
    default=100,
    show_default=True,
    help="How many packages may be made and run to find the nodes.",
)
@click.option(
    "--inputs",
    multiple=True,
    metavar="FILE.npz|DIR",
    type=FILE_PATH,
    help="Run these inputs besides the recorded ones; expected is what the package computes in"
    " float32, or what the reference does. Repeatable.",
)
@click.option(
    "--vectors",
    metavar="N",
    type=int,
    help="Use the first N recorded runs only; the first is at the example's sizes.",
)
@policy_option
@kernels_option
@json_option
def command(
    package: Path,
    reference: Path | None,
    output: Path | None,
    to: str | None,
    target: float | None,
    max_runs: int,
    inputs: tuple[Path, ...],
    vectors: int | None,
    policy: Path | None,
    kernels: Kernels,
    as_json: bool,
) -> None:
    """Find the first layer and node at which the package DIR parts from the original model, and
    which nodes of a package in half precision have to be in float32: exit 0 if nothing diverges or
    the repaired package was written, 1 if not."""
    from moh_deploy.api.bisect import bisect

    report = carry_out(
        lambda progress: bisect(
            package,
            reference=reference,
            output=output,
            to=to,
            target=target,
            kernels=kernels,
            inputs=inputs,
            vectors=vectors,
            policy=policy,
            max_runs=max_runs,
            progress=progress,
        ),
        as_json=as_json,
    )
    print_answer(report, as_json=as_json)
