"""`moh-deploy tune`."""

from __future__ import annotations

import click

from moh_deploy.cli.common_options import json_option, package_argument
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.output import carry_out, print_report


@click.command("tune")
@package_argument
@click.option(
    "--inputs",
    multiple=True,
    metavar="FILE.npz|DIR",
    type=FILE_PATH,
    help="Measure on these inputs instead of the recorded ones; what is chosen is good for their"
    " sizes. Repeatable.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="N",
    type=float,
    help="How often a file of --inputs counts, in their order, in a directory that of names: 1 for"
    " a prefill, 200 for a decoding step. Repeatable.  [default: 1 each]",
)
@click.option(
    "--threads",
    metavar="N",
    type=int,
    help="Threads within an operator. One thread is measured by CPU time, several by wall time."
    "  [default: as ONNX Runtime chooses]",
)
@click.option(
    "--min-time",
    metavar="TIME",
    default="500ms",
    show_default=True,
    help="How long each comparison takes at least.",
)
@click.option(
    "--choose",
    multiple=True,
    metavar="LAYER=CHOICE",
    help="Do not measure: let this layer, or all, be dense, sparse or projected;"
    " 'LAYER[seq<=64]=dense' up to a size only. Repeatable.",
)
@click.option(
    "--one-choice",
    is_flag=True,
    help="Let no choice depend on sizes: each layer gets the one that is fastest for all inputs"
    " together.",
)
@click.option("--dry-run", is_flag=True, help="Measure and report, but write nothing.")
@json_option
def command(choose: tuple[str, ...], min_time: str, as_json: bool, **options: object) -> None:
    """Measure on this machine how each MoH layer of the package DIR runs fastest, and write that
    into the package: dense where skipping heads does not pay."""
    from moh_deploy.api.tune import parse_choices, tune
    from moh_deploy.system.units import parse_seconds

    # The options above are named as the parameters of tune.
    package_dir = options.pop("package")
    choices, min_seconds = parse_choices(choose), parse_seconds(min_time, option="--min-time")
    report = carry_out(
        lambda progress: tune(
            package_dir,  # type: ignore[arg-type]
            choose=choices,
            min_time=min_seconds,
            progress=progress,
            **options,  # type: ignore[arg-type]
        ),
        as_json=as_json,
    )
    print_report(report, as_json=as_json)
