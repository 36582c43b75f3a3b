"""`moh-deploy bisect`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("bisect")
@options.takes(
    options.PACKAGE,
    options.path(
        "--reference",
        "DIR",
        "A float32 package of the same model: the one that this one was lowered from, or one"
        " that is right. It names the node and what is different about it, and gives float32"
        " weights.",
    ),
    options.output(
        "Write the package again with the nodes in float32 that need it.", required=False
    ),
    click.option(
        "--to",
        metavar="float16|bfloat16|int8",
        help="Lower a float32 package first, as `precision` does, which writes none that is not"
        " right.",
    ),
    click.option(
        "--target",
        metavar="SHARE",
        type=float,
        help="How far outputs may be off, as a share of their largest value, such as 0.001."
        " Default: what `verify` allows.",
    ),
    click.option(
        "--max-runs",
        metavar="N",
        type=int,
        default=100,
        show_default=True,
        help="How many packages may be made and run to find the nodes.",
    ),
    options.inputs(
        "Run these inputs besides the recorded ones; expected is what the package computes in"
        " float32, or what the reference does."
    ),
    options.vectors("Use the first N recorded runs only; the first is at the example's sizes."),
    options.POLICY,
    options.KERNELS,
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Find the first layer and node at which the package DIR parts from the original model, and
    which nodes of a package in half precision have to be in float32: exit 0 if nothing diverges or
    the repaired package was written, 1 if not."""
    from moh_deploy.api.bisect import bisect

    print_answer(lambda progress: bisect(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
