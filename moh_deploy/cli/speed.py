"""`moh-deploy tune` and `bench`: commands that measure time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.command import Argument, Default, Under, command
from moh_deploy.cli.original import original_of
from moh_deploy.cli.output import print_answer, write_files
from moh_deploy.errors import ConfigError

if TYPE_CHECKING:
    from moh_deploy.report.report import Report
    from moh_deploy.system.progress import SilentProgress


class ToTune(TypedDict):
    package_dir: options.PackagePath
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Measure on these inputs instead of the recorded ones, each file as one batch; what is"
        " chosen is good for their sizes.",
    ]
    weights: options.InputWeights
    runtime: options.RuntimeName
    threads: options.Threads
    min_time: options.TuneTime
    one_choice: options.OneChoice
    dry_run: Annotated[bool, "Measure and report, but write nothing."]


@command("tune", page="tune")
def tune_command(
    choose: Annotated[
        Mapping[str, str] | None,
        "LAYER=CHOICE",
        "Do not measure: let this layer, or all, be dense, sparse or projected;"
        " 'LAYER[seq<=64]=dense' up to a size only.",
        values.read_all(values.parse_choices),
        Under("The measurement"),
    ],
    within: Annotated[
        tuple[str, ...],
        "CONDITION",
        "Choose the runtime and the precision, too: the fastest of all that are there under this"
        " condition, such as 'top-1 >= 0.98 * reference' (with --labels), 'flips <= 0.1 %' or"
        " 'parity'. DIR is in float32 and stays as it is. --runtime tries one only.",
    ],
    output: Annotated[Path | None, "--output -o DIR", "With --within: the package to write."],
    calibration: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "With --within: inputs that static scales of int8 are made of, which tries these, too."
        " --inputs must not hold their samples.",
        Under("Accuracy"),
    ],
    labels: options.LabelFile,
    scoring: options.Scoring,
    code_dirs: options.MetricCode,
    files: options.ReportPages,
    verbose: options.Verbose,
    as_json: options.Json,
    **given: Unpack[ToTune],
) -> None:
    """Measure on this machine how each MoH layer of the package DIR runs fastest, and write that
    into the package: dense where skipping heads does not pay.

    With --within, find the runtime and the precision as well that are fastest and still good.

    Example:
        moh-deploy tune build/model --inputs val.npz
        moh-deploy tune build/model --within 'top-1 >= 0.98 * reference' \\
            --inputs val.npz --labels labels.npy -o build/fast
    """
    from moh_deploy.api.tune import tune
    from moh_deploy.api.tune_within import tune_within

    if within:
        _refuse("choose", why="says how layers run, which --within measures")
    else:
        _refuse(
            "output",
            "calibration",
            "labels",
            *scoring,
            "code_dirs",
            why="is of --within, which is not given",
        )

    def job(progress: "SilentProgress") -> "Report":
        if not within:
            return tune(choose=choose, progress=progress, **given)
        return tune_within(
            within=within,
            output=output,
            calibration=calibration,
            labels=labels,
            code_dirs=code_dirs,
            progress=progress,
            **scoring,
            **given,
        )

    print_answer(
        lambda progress: write_files(files, str(given["package_dir"]), lambda: job(progress)),
        as_json=as_json,
        verbose=verbose,
    )


def _refuse(*names: str, why: str) -> None:
    """Refuse options that would be ignored without a word."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is not click.core.ParameterSource.DEFAULT:
            raise ConfigError(f"{parameter.opts[0]} {why}: leave it out.")


class ToBench(TypedDict):
    package_dirs: Annotated[tuple[Path, *tuple[Path, ...]], Argument("DIR...", -1)]
    baselines: Annotated[
        tuple[str, ...],
        "--baseline dense|functions|fixed-routing|plain-engine|eager|plain-onnx|DIR|FILE.onnx",
        "Compare with the first package with every layer dense, with its function bodies,"
        " without its routers (fixed-routing:LAYER: one of them); with the first engine without"
        " kernels; with the original in PyTorch,"
        " with its export by PyTorch alone; with another package, engine or model.",
        values.name_or_path(
            *("dense", "functions", "fixed-routing", "plain-engine", "eager", "plain-onnx")
        ),
    ]
    package: Annotated[
        Path | None,
        "DIR",
        "The package that the first DIR was built from, if that is an engine: what to run it on.",
        Under("Baselines"),
    ]
    threads: Annotated[
        int | None,
        "N",
        "Threads within an operator.  [default: as the runtime chooses]",
        Under("The measurement"),
    ]
    batch: Annotated[
        tuple[int, ...],
        "N ...",
        "Batch sizes to run at. Inputs of sizes that were not recorded are random.",
        Under("The measurement"),
    ]
    sizes: Annotated[
        Mapping[str, Sequence[int]],
        "--size NAME=N ...",
        "Sizes of other dynamic dimensions to run at; all combinations are measured.",
        values.read_all(values.parse_sizes),
        Under("The measurement"),
    ]
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Run on these inputs instead of the recorded ones, each file as one batch.",
    ]
    min_time: Annotated[
        float,
        "TIME",
        "How long all candidates run in turn, on each set of inputs.",
        values.seconds,
        Default("5s"),
        Under("The measurement"),
    ]
    warmup: Annotated[
        float,
        "TIME",
        "How long they run before, untimed.",
        values.seconds,
        Default("500ms"),
        Under("The measurement"),
    ]
    gates: Annotated[
        tuple[str, ...],
        "--gate CONDITION",
        "Fail unless this holds for every DIR: 'p50 <= 1.05 * baseline', 'p99 < 20 ms'.",
    ]
    baseline_file: options.BaselineFile
    update_baseline: options.UpdateBaseline
    runtime: options.RuntimeName
    kernels: options.KernelChoice


@command("bench", page="bench", many={"--batch": r"\d+", "--size": r"[A-Za-z_]\w*=\d+"})
def bench_command(
    checkpoint: Annotated[
        Path | None,
        "FILE",
        "The original model, for --baseline eager and plain-onnx.",
        Under("Baselines"),
    ],
    loading: options.OriginalLoading,
    files: options.ReportFiles,
    verbose: options.Verbose,
    as_json: options.Json,
    **given: Unpack[ToBench],
) -> None:
    """Measure latency, throughput and memory of the packages or engines DIR, in turns with
    baselines: exit 1 if a gate does not pass.

    Example:
        moh-deploy bench build/model --baseline dense --gate 'p50 <= 1.05 * baseline'
    """
    from moh_deploy.api.bench import bench

    print_answer(
        lambda progress: write_files(
            files,
            ", ".join(map(str, given["package_dirs"])),
            lambda: bench(
                original=original_of(checkpoint, loading, progress), progress=progress, **given
            ),
        ),
        as_json=as_json,
        verbose=verbose,
    )
