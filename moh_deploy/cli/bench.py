"""`moh-deploy bench`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.original import original_of, taken_model_options
from moh_deploy.cli.output import FileFormat, ReportFiles, print_answer
from moh_deploy.cli.values import ManyValues


@click.command("bench", cls=ManyValues, many={"--batch": r"\d+", "--size": r"[A-Za-z_]\w*=\d+"})
@options.takes(
    click.argument(
        "package_dirs", metavar="DIR...", nargs=-1, required=True, type=values.FILE_PATH
    ),
    options.many(
        "--baseline",
        "dense|functions|fixed-routing|plain-engine|eager|plain-onnx|DIR|FILE.onnx",
        "Compare with the first package with every layer dense, with its function bodies,"
        " without its routers (fixed-routing:LAYER: one of them); with the first engine without"
        " kernels; with the original in PyTorch,"
        " with its export by PyTorch alone; with another package, engine or model.",
        to="baselines",
        type=values.NAME_OR_PATH,
    ),
    options.path(
        "--package",
        "DIR",
        "The package that the first DIR was built from, if that is an engine: what to run it on.",
    ),
    options.checkpoint(
        "The original model, for --baseline eager and plain-onnx. The options from --config to"
        " --dtype say how to load it, as for export."
    ),
    options.MODEL_OPTIONS,
    options.threads("Threads within an operator."),
    click.option(
        "--batch",
        multiple=True,
        metavar="N ...",
        type=int,
        help="Batch sizes to run at. Inputs of sizes that were not recorded are random.",
    ),
    click.option(
        "--size",
        "sizes",
        multiple=True,
        metavar="NAME=N ...",
        callback=values.read_all(values.parse_sizes),
        help="Sizes of other dynamic dimensions to run at; all combinations are measured.",
    ),
    options.inputs("Run on these inputs instead of the recorded ones."),
    options.min_time("How long all contestants run in turn, on each set of inputs.", default="5s"),
    options.time("--warmup", "How long they run before, untimed.", default="500ms"),
    options.many(
        "--gate",
        "CONDITION",
        "Fail unless this holds for every DIR: 'p50 <= 1.05 * baseline', 'p99 < 20 ms'.",
        to="gates",
    ),
    options.BASELINE_FILE,
    options.RUNTIME,
    options.KERNELS,
    options.REPORT_FILES,
    options.JSON,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    package_dirs: tuple[Path, ...],
    checkpoint: Path | None,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **given: object,
) -> None:
    """Measure latency, throughput and memory of the packages or engines DIR, in turns with
    baselines: exit 1 if a gate does not pass."""
    from moh_deploy.api.bench import bench

    loading = taken_model_options(given)
    subject = ", ".join(map(str, package_dirs))
    paths: dict[FileFormat, Path | None] = {"junit": junit, "markdown": markdown, "html": html}
    files = ReportFiles("bench", subject, paths, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: bench(
                package_dirs,
                original=original_of(checkpoint, loading, progress),
                progress=progress,
                **given,  # type: ignore[arg-type]
            )
        ),
        as_json=as_json,
    )
