"""`moh-deploy optimize`, `export`, `precision`, `prune`, `inline`: commands that write models."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, Unpack

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.command import Argument, Default, OptionGroup, Under, command
from moh_deploy.cli.output import print_answer, write_files
from moh_deploy.config.dtypes import FEW_BITS, LowerPrecision, Runtime, Scales, either
from moh_deploy.errors import ExportError

if TYPE_CHECKING:
    from moh_deploy.frontend.export_report import ExportReport
    from moh_deploy.perf.optimize_report import OptimizeReport
    from moh_deploy.system.progress import SilentProgress


class ToExport(TypedDict):
    model: Annotated[Path, Argument()]
    output: Annotated[Path, "--output -o DIR", "Package to write."]
    inputs: Annotated[
        Path | None,
        "FILE.npz",
        "Example inputs; members are called as the parameters of forward, with a path into what is"
        " nested: past.0.key. Other names are the positional arguments, in file order.",
    ]


class TraceOptions(TypedDict):
    """Options that say what is traced, and how the package is to be."""

    dynamic: Annotated[
        tuple[str, ...],
        "NAME:AXIS=DIM,...",
        "Dynamic axes of an input: x:0=batch,2=height.",
        Under("Inputs and outputs"),
    ]
    input_specs: Annotated[
        tuple[str, ...],
        "--input SPEC",
        "An example input to make up: 'x:[batch=2,3,224,224]:float32'. NAME=SIZE is a dynamic"
        " dimension, a number a fixed one; 'ids:[seq=8]:int64=0..999' has a range. Or a constant"
        " that the model is called with: use_cache=False.",
    ]
    output_names: Annotated[
        tuple[str, ...],
        "--output-name NAME",
        "Name of an output, in order.",
        Under("Inputs and outputs"),
    ]
    valid_tokens: Annotated[
        str | None,
        "NAME",
        "The input that is 1 for valid tokens and 0 for padding, [batch, tokens], or that is added"
        " to scores, 0 for valid tokens; `not NAME`: 1 for padding, as PyTorch's key_padding_mask."
        " Padding is not compared, here and wherever the package is. `all` compares all tokens."
        "  [default: what the graph shows to be such an input]",
        Under("Inputs and outputs"),
    ]
    opset: Annotated[int | None, "N", "ONNX operator set.", Under("The package")]
    compute_type: Annotated[
        Literal["float32", "bfloat16"] | None,
        "What CPU kernels may round the operands of attention's matrix products to. bfloat16"
        " is faster where the processor has it (amx_bf16, avx512_bf16), and less exact."
        "  [default: float32]",
        Under("The package"),
    ]
    cache: Annotated[
        Literal["in-place", "concatenated"] | None,
        "in-place: a decoder takes caches with room, and writes new keys and values into them;"
        " concatenated: it returns a longer copy of each, as it was written."
        "  [default: concatenated]",
        Under("The package"),
    ]
    require_layers: Annotated[
        int | Literal["all"] | None,
        "N|all",
        "Fail (exit 4) unless at least N MoH layers were replaced; all: unless all were, 1 or"
        " more, and nothing else looks like one; 0: whatever was.",
        values.number_or_word,
        Under("The package"),
    ]


@command("export", page="quickstart")
def export_command(
    loading: options.Loading,
    trace: Annotated[TraceOptions, OptionGroup("Options")],
    verbose: Annotated[
        bool, "Say on stderr where time went: each step and its seconds.", Under("Reports")
    ],
    as_json: options.Json,
    **given: Unpack[ToExport],
) -> None:
    """Turn MODEL, of PyTorch (.pt, .pth, .safetensors, .pt2) or .onnx, into a verified package.

    MODEL may be a directory with config.json and weights, as Hugging Face lays it out.

    An ONNX file needs no code and no example inputs: `moh-deploy help onnx-input`.

    Example:
        moh-deploy export model.pt -o build/model --trust-pickle --code-dir . \\
            --input 'images:[batch=2,1,8,8]:float32'
    """
    from moh_deploy.config.options import ExportOptions
    from moh_deploy.package.before_export import check_export
    from moh_deploy.system.progress import seconds_text

    job = ExportOptions(**given, **loading, **trace)
    check_export(job)  # before PyTorch is imported
    from moh_deploy.frontend.export_package import export_package

    def export(progress: "SilentProgress") -> "ExportReport":
        try:
            return export_package(job, progress=progress)
        except ExportError as error:
            graph = getattr(error.__cause__, "partial_fx_graph", None)  # of torch.export
            if verbose and graph is not None:
                click.echo(graph, err=True)
            raise
        finally:  # of an export that fails, too
            if verbose:
                click.echo(seconds_text(progress.seconds), err=True)

    print_answer(export, as_json=as_json)


class ToOptimize(TypedDict):
    model: Annotated[Path, Argument()]
    output: Annotated[Path, "--output -o DIR", "Package to write; its page is DIR.html."]
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Your data: what --within is judged on, and times are measured on. With --labels samples,"
        " else each file is one run.",
    ]
    labels: options.LabelFile
    within: Annotated[
        tuple[str, *tuple[str, ...]],
        "CONDITION",
        "What good means: 'top-1 >= 0.98 * reference' (with --labels), 'flips <= 0.1 %' or"
        " 'parity'. All of them have to hold.",
    ]
    example: Annotated[
        Path | None,
        "FILE.npz",
        "Example inputs, as export --inputs takes them.  [default: of --inputs, where nothing else"
        " says what the model takes; samples have the dynamic dimension `batch` there]",
    ]
    runtime: Annotated[Runtime | None, "Try this runtime only.  [default: all that are installed]"]
    threads: options.Threads
    calibration: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Try int8 with static scales, too: they are made of these inputs, whose samples --inputs"
        " must not hold.",
    ]
    weights: options.InputWeights
    min_time: options.TuneTime
    one_choice: options.OneChoice


@command("optimize", page="optimize")
def optimize_command(
    scoring: options.Scoring,
    loading: options.Loading,
    trace: Annotated[TraceOptions, OptionGroup("Options")],
    files: options.ReportPages,
    as_json: options.Json,
    **given: Unpack[ToOptimize],
) -> None:
    """Export MODEL, prove it, and write the fastest package on this machine that still meets
    --within on your data: over runtimes, precisions, and how each layer runs.

    What is finished is kept in DIR.work until DIR is written: after an interruption the same
    command goes on there.

    Example:
        moh-deploy optimize model.pt -o build/fast --trust-pickle --code-dir . \\
            --inputs val.npz --labels labels.npy --within 'top-1 >= 0.98 * reference'
    """
    output = given["output"]
    work = output.with_name(f"{output.name}.work")

    def job(_: "SilentProgress") -> "OptimizeReport":
        from moh_deploy.api.optimize import PHASES, optimize
        from moh_deploy.package import check_package_output
        from moh_deploy.system.progress import bar_for_terminal

        check_package_output(output)
        html = files["html"] or output.with_name(f"{output.name}.html")
        paths: options.ReportPaths = {"markdown": files["markdown"], "html": html}
        output.parent.mkdir(parents=True, exist_ok=True)  # The page goes there, too.
        # With --json as well: it is on stderr.
        with bar_for_terminal(PHASES) as progress:
            return write_files(
                paths,
                str(given["model"]),
                lambda: optimize(**given, **loading, **trace, **scoring, progress=progress),
                keep_earlier=True,
            )

    try:
        print_answer(job, as_json=as_json)
    finally:
        if os.path.isdir(work):
            text = f"unfinished: {work} keeps what is done, and the same command goes on there"
            click.echo(text, err=True)


class ToLower(TypedDict):
    package_dir: options.PackagePath
    to: Annotated[
        LowerPrecision,
        f"What products and activations become. {' and '.join(FEW_BITS)} are for the CPU: products"
        " with stored weights, by ONNX Runtime's own quantiser.",
    ]
    float32: Annotated[
        tuple[str, ...],
        "NODE",
        f"With --to {either(FEW_BITS)}: a product of model.onnx that stays in float32, by its"
        " name.",
        Under("Numbers"),
    ]
    scales: Annotated[
        Scales,
        "With --to int8: static scales are made of --inputs once, for OpenVINO; dynamic ones are"
        " measured in each run.",
        Default("dynamic"),
        Under("Numbers"),
    ]
    output: Annotated[Path, "--output -o DIR", "The package directory to write."]
    within: Annotated[options.Within, Under("Conditions")]
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Judge --within on these inputs instead of the recorded ones; with --scales static,"
        " calibrate on them.",
        Under("Conditions"),
    ]
    judge: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "With --scales static: judge --within on these inputs, whose samples --inputs must not"
        " hold.",
        Under("Conditions"),
    ]
    labels: Annotated[options.LabelFile, Under("Conditions")]
    code_dirs: options.MetricCode


@command("precision", page="precision")
def precision_command(
    scoring: options.Scoring,
    as_json: options.Json,
    **given: Unpack[ToLower],
) -> None:
    """Write the package DIR again in lower precision, as a graph whose types say where: routers,
    norms and what would overflow stay in float32.

    Example:
        moh-deploy precision build/model --to int8 -o build/int8
    """
    from moh_deploy.api.precision import precision

    print_answer(lambda progress: precision(**given, **scoring, progress=progress), as_json=as_json)


class ToPrune(TypedDict):
    package_dir: options.PackagePath
    keep: Annotated[
        str,
        "N|PERCENT%",
        "Heads that each layer keeps: a number such as 12, or a share of each layer's heads"
        " such as 75%.",
    ]
    by: Annotated[
        Literal["load", "gate"],
        "Keep the heads that are open for most tokens, or those with the largest mean gate.",
        Default("load"),
    ]
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Count heads on these inputs instead of the recorded ones.",
    ]
    allow_whole: Annotated[
        bool,
        "Let a layer whose weights cannot be cut stay whole, with gates of 0 for the heads that are"
        " not kept.",
    ]
    output: Annotated[Path, "--output -o DIR", "The package directory to write."]


@command("prune", page="prune")
def prune_command(as_json: options.Json, **given: Unpack[ToPrune]) -> None:
    """Write the package DIR with the same heads for every token: those that are used most. The
    weights of the others are cut, and there is no router. The plain rival of routing: another model
    than the original, proven equal to it with these gates fed.

    Example:
        moh-deploy prune build/model --keep 75% -o build/pruned
    """
    from moh_deploy.api.prune import prune

    print_answer(lambda progress: prune(**given, progress=progress), as_json=as_json)


@command("inline", page="runtimes")
def inline_command(
    package_dir: options.PackagePath,
    output: Annotated[
        Path, "--output -o FILE.onnx", "The ONNX file to write; an earlier one is replaced."
    ],
    as_json: options.Json,
) -> None:
    """Write the model of the package DIR to one ONNX file in standard operators only, proven equal:
    for runtimes that know no functions. It computes every head.

    Example:
        moh-deploy inline build/model -o model.onnx
    """
    from moh_deploy.api.inline import inline

    print_answer(
        lambda progress: inline(package_dir, output=output, progress=progress), as_json=as_json
    )
