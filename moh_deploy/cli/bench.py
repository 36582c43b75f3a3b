"""`moh-deploy bench`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli.common_options import (
    baseline_file_option,
    html_option,
    json_option,
    junit_option,
    kernels_option,
    markdown_option,
    model_options,
    update_baseline_option,
)
from moh_deploy.cli.file_path import FILE_PATH, NAME_OR_PATH
from moh_deploy.cli.many_values import ManyValues
from moh_deploy.cli.original import original_of, taken_model_options
from moh_deploy.cli.output import carry_out, print_answer
from moh_deploy.cli.report_files import bench_files


@click.command("bench", cls=ManyValues, many={"--batch": r"\d+", "--size": r"[A-Za-z_]\w*=\d+"})
@click.argument("package_dirs", metavar="DIR...", nargs=-1, required=True, type=FILE_PATH)
@click.option(
    "--baseline",
    "baselines",
    type=NAME_OR_PATH,
    multiple=True,
    metavar="dense|functions|fixed-routing|eager|plain-onnx|DIR|FILE.onnx",
    help="Compare with the first package with every layer dense, with its function bodies, without"
    " its routers (fixed-routing:LAYER: one of them); with the original in PyTorch, with its export"
    " by PyTorch alone; with another package, engine or model. Repeatable.",
)
@click.option(
    "--package",
    metavar="DIR",
    type=FILE_PATH,
    help="The package that the first DIR was built from, if that is an engine: what to run it on.",
)
@click.option(
    "--checkpoint",
    metavar="FILE",
    type=FILE_PATH,
    help="The original model, for --baseline eager and plain-onnx. The next seven options say how"
    " to load it, as for export.",
)
@model_options
@click.option(
    "--threads",
    metavar="N",
    type=int,
    help="Threads within an operator.  [default: as ONNX Runtime chooses]",
)
@click.option(
    "--batch",
    multiple=True,
    metavar="N ...",
    type=int,
    help="Batch sizes to run at. Inputs of sizes that were not recorded are random.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NAME=N ...",
    help="Sizes of other dynamic dimensions to run at; all combinations are measured.",
)
@click.option(
    "--inputs",
    multiple=True,
    metavar="FILE.npz|DIR",
    type=FILE_PATH,
    help="Run on these inputs instead of the recorded ones. Repeatable.",
)
@click.option(
    "--min-time",
    metavar="TIME",
    default="5s",
    show_default=True,
    help="How long all contestants run in turn, on each set of inputs.",
)
@click.option(
    "--warmup",
    metavar="TIME",
    default="500ms",
    show_default=True,
    help="How long they run before, untimed.",
)
@click.option(
    "--gate",
    "gates",
    multiple=True,
    metavar="CONDITION",
    help="Fail unless this holds for every DIR: 'p50 <= 1.05 * baseline', 'p99 < 20 ms'."
    " Repeatable.",
)
@baseline_file_option
@update_baseline_option
@kernels_option
@junit_option
@markdown_option
@html_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    package_dirs: tuple[Path, ...],
    sizes: tuple[str, ...],
    min_time: str,
    warmup: str,
    checkpoint: Path | None,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **options: object,
) -> None:
    """Measure latency, throughput and memory of the packages or engines DIR, in turns with
    baselines: exit 1 if a gate does not pass."""
    from moh_deploy.api.bench import bench, parse_sizes
    from moh_deploy.system.units import parse_seconds

    asked = parse_sizes(sizes)
    min_seconds = parse_seconds(min_time, option="--min-time")
    warmup_seconds = parse_seconds(warmup, option="--warmup")
    model = taken_model_options(options)
    subject = ", ".join(map(str, package_dirs))
    files = bench_files(subject, ctx.obj or (), junit=junit, markdown=markdown, html=html)
    report = carry_out(
        lambda progress: files.write_on(
            lambda: bench(
                package_dirs,
                sizes=asked,
                min_time=min_seconds,
                warmup=warmup_seconds,
                original=original_of(checkpoint, model, progress),
                progress=progress,
                # These are named as the parameters of bench.
                **options,  # type: ignore[arg-type]
            )
        ),
        as_json=as_json,
    )
    print_answer(report, as_json=as_json)
