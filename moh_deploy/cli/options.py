"""Every option and argument of the command line, and the types of their values, each once.

The parameters are named as those of the public functions, so that a command hands them on as they
are: a new option is a line here and a parameter in `api/`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from moh_deploy.errors import ConfigError
from moh_deploy.system.units import parse_seconds

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Any], Any]
"""What adds one option to a command."""


class _Setting(Protocol):
    """Makes an option of how a model is served, for one of the commands that have it."""

    def __call__(self, *, is_written: bool) -> Option: ...


def takes(*options: Option | Sequence[Option]) -> Callable[[Command], Command]:
    """Add options and groups of options to a command, in the order in which `--help` shows them."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command) if callable(option) else takes(*option)(command)
        return command

    return add


class _FilePath(click.Path):
    """A path, there or not; one that the system cannot even look up is wrong usage."""

    name = "path"

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        path = os.fspath(value)
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."
                self.fail(f"'{shown}': {error.strerror}.", param, ctx)
        return super().convert(value, param, ctx)


FILE_PATH = _FilePath(path_type=Path)
NAME_OR_PATH = _FilePath(path_type=str)  # `functions`, or a file
_LONGEST_SHOWN = 100
_LONGEST_NUMBER = 10


def parse_sizes(texts: Sequence[str]) -> dict[str, list[int]]:
    """Read `NAME=N`; a name may come several times.

    Raises:
        ConfigError: A text is of another form.
    """
    sizes: dict[str, list[int]] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not name or not number.isdecimal():
            raise ConfigError(f"'{text}' is no size, expected NAME=N, such as seq=512.")
        sizes.setdefault(name, []).append(int(number))
    return sizes


def parse_longest(texts: Sequence[str]) -> dict[str, int]:
    """Read `DIM=N`.

    Raises:
        ConfigError: A text is of another form, or a dimension is named twice.
    """
    sizes: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not name or not number.isdecimal():
            raise ConfigError(f"longest is '{text}', expected DIM=N, such as seq=512.")
        if name in sizes:
            raise ConfigError(f"longest names '{name}' twice.")
        sizes[name] = int(number)
    return sizes


def parse_choices(texts: Sequence[str]) -> dict[str, str] | None:
    """Read `LAYER=CHOICE`; None where there is nothing to read.

    Raises:
        ConfigError: A text is of another form, or a layer is named twice.
    """
    choices: dict[str, str] = {}
    for text in texts:
        path, equals, choice = text.rpartition("=")
        if not equals or not path:
            raise ConfigError(f"'{text}' is no choice, expected LAYER=CHOICE, such as all=dense.")
        if path in choices:
            raise ConfigError(f"layer '{path}' is chosen twice: {choices[path]} and {choice}.")
        choices[path] = choice
    return choices or None


def parse_tokens(texts: Sequence[str]) -> list[list[int]]:
    """Read `1,15,27`, a prompt each.

    Raises:
        ConfigError: A text is of another form.
    """
    prompts = [[part.strip() for part in text.split(",")] for text in texts]
    for text, parts in zip(texts, prompts, strict=True):
        if not all(part.isdecimal() and len(part) < _LONGEST_NUMBER for part in parts):
            raise ConfigError(f"'{text[:_LONGEST_SHOWN]}' is no prompt, expected 1,15,27.")
    return [[int(part) for part in parts] for parts in prompts]


def _read(parse: Callable[[Sequence[str]], object]) -> Callable[..., object]:
    """Return a callback of click that reads all values of an option at once."""
    return lambda ctx, param, values: parse(values)


def _seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    return parse_seconds(value, option=param.opts[0])


def _flag(name: str, help: str) -> Option:
    return click.option(name, is_flag=True, help=help)


def _path(name: str, metavar: str, help: str, **settings: Any) -> Option:
    return click.option(name, metavar=metavar, type=FILE_PATH, help=help, **settings)


def _many(name: str, metavar: str, help: str, *, to: str | None = None, **settings: Any) -> Option:
    """An option that may be given several times; `to` is the parameter that gets all values."""
    names = [name] if to is None else [name, to]
    help = f"{help} Repeatable."
    return click.option(*names, multiple=True, metavar=metavar, help=help, **settings)


def _number_or_word(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> int | str | None:
    return int(value) if value is not None and value.isdecimal() else value


# Shared by several commands.

PACKAGE = click.argument("package_dir", metavar="DIR", type=FILE_PATH)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else."
)
RUNTIME = click.option(
    "--runtime",
    type=click.Choice(["onnxruntime", "openvino"]),
    help="What runs a package on the CPU. openvino compiles it for each shape, and runs bfloat16"
    " where the processor can: pip install 'moh-deploy[openvino]'."
    "  [default: what it was tuned for, or else onnxruntime]",
)
KERNELS = click.option(
    "--kernels",
    type=click.Choice(["auto", "off", "require"]),
    default="auto",
    show_default=True,
    help="Run MoH nodes on the kernel library where there is one, on their function bodies only,"
    " or fail if there is no kernel.",
)
POLICY = _path(
    "--policy",
    "FILE.yaml",
    "Tolerances that replace those of the built-in table, each with its reason. `verify` reads"
    " there what accuracy may lose, too.",
)
JUNIT = _path("--junit", "FILE", "Write JUnit XML for a CI.")
REPORT_FILES = (
    JUNIT,
    _path("--markdown", "FILE", "Write Markdown for a pull request."),
    _path("--html", "FILE", "Write one HTML page that needs nothing else."),
)
BASELINE_FILE = (
    _path(
        "--baseline-file",
        "FILE.json",
        "Fail if a figure is worse than in this file, by more than its slack; see docs/ci.md.",
    ),
    _flag("--update-baseline", "Write what is new or better into that file, never what is worse."),
)


def _inputs(help: str) -> Option:
    return _many("--inputs", "FILE.npz|DIR", help, type=FILE_PATH)


def _output(help: str, *, metavar: str = "DIR", required: bool = True) -> Option:
    return click.option(
        "--output", "-o", required=required, metavar=metavar, type=FILE_PATH, help=help
    )


def _vectors(help: str) -> Option:
    return click.option("--vectors", metavar="N", type=int, help=help)


def _valid_tokens(help: str) -> Option:
    return click.option("--valid-tokens", metavar="NAME", help=help)


def _cache(*forms: str, help: str) -> Option:
    return click.option("--cache", type=click.Choice(forms), help=help)


def _count(name: str, help: str, *, default: int | None = None) -> Option:
    return click.option(
        name,
        metavar="N",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        help=help,
    )


def _min_time(help: str, *, default: str) -> Option:
    return _time("--min-time", help, default=default)


def _time(name: str, help: str, *, default: str) -> Option:
    return click.option(
        name,
        metavar="TIME",
        default=default,
        show_default=True,
        callback=_seconds,
        help=help,
    )


def _threads(help: str) -> Option:
    return click.option(
        "--threads", metavar="N", type=int, help=f"{help}  [default: as the runtime chooses]"
    )


def _checkpoint(help: str) -> Option:
    return _path("--checkpoint", "FILE", help)


# How a checkpoint is loaded: fields of `ModelOptions`.
MODEL_OPTIONS = (
    _path("--config", "FILE.yaml", "Settings from a file."),
    _many(
        "--set",
        "KEY=VALUE",
        "A setting that wins over the file's: model.kwargs.depth=2.",
        to="overrides",
    ),
    click.option(
        "--factory",
        metavar="MODULE:CALLABLE",
        help="What builds the model that a state dict belongs to.",
    ),
    _many(
        "--code-dir", "DIR", "Import the model's code from here.", to="code_dirs", type=FILE_PATH
    ),
    click.option(
        "--state-key",
        metavar="KEY",
        help="Where a training checkpoint keeps the weights: model, ema.",
    ),
    _flag("--trust-pickle", "Allow unpickling a whole module: it runs code from the file."),
    _flag(
        "--trust-code", "Run code that a model directory brings along, as its config.json names it."
    ),
    click.option(
        "--task",
        type=click.Choice(["text-generation"]),
        help="Export a language model with what generating text takes: tokens, a mask over cache"
        " and tokens, and the cache, all named as Hugging Face names them.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Bring the model and its inputs to this dtype first. Without: as in the checkpoint.",
    ),
)

EXPORT = (
    click.argument("model", type=FILE_PATH),
    _output("Package to write."),
    MODEL_OPTIONS,
    _path(
        "--inputs",
        "FILE.npz",
        "Example inputs; members are called as the parameters of forward, with a path into what is"
        " nested: past.0.key. Other names are the positional arguments, in file order.",
    ),
    _many("--dynamic", "NAME:AXIS=DIM,...", "Dynamic axes of an input: x:0=batch,2=height."),
    _many(
        "--input",
        "SPEC",
        "An example input to make up: 'x:[batch=2,3,224,224]:float32'. NAME=SIZE is a dynamic"
        " dimension, a number a fixed one; 'ids:[seq=8]:int64=0..999' has a range. Or a constant"
        " that the model is called with: use_cache=False.",
        to="input_specs",
    ),
    _many("--output-name", "NAME", "Name of an output, in order.", to="output_names"),
    _valid_tokens(
        "The input that is 1 for valid tokens and 0 for padding, [batch, tokens], or that is added"
        " to scores, 0 for valid tokens: what is computed for padding is not compared, here and"
        " wherever the package is. `all` compares all tokens."
        "  [default: what the graph shows to be such an input]"
    ),
    click.option("--opset", type=int, metavar="N", help="ONNX operator set."),
    click.option(
        "--compute-type",
        type=click.Choice(["float32", "bfloat16"]),
        help="What CPU kernels may round the operands of attention's matrix products to. bfloat16"
        " is faster where the processor has it (amx_bf16, avx512_bf16), and less exact."
        "  [default: float32]",
    ),
    _cache(
        "in-place",
        "concatenated",
        help="in-place: a decoder takes caches with room, and writes new keys and values into them;"
        " concatenated: it returns a longer copy of each, as it was written."
        "  [default: concatenated]",
    ),
    click.option(
        "--require-layers",
        metavar="N|all",
        callback=_number_or_word,
        help="Fail (exit 4) unless at least N MoH layers were replaced; all: unless all were, and"
        " nothing else looks like one.",
    ),
    click.option(
        "--verbose", is_flag=True, help="Say on stderr where time went: each step and its seconds."
    ),
    JSON,
)

PRECISION = (
    PACKAGE,
    click.option(
        "--to",
        required=True,
        metavar="float16|bfloat16|int8|int4",
        help="What products and activations become. int8 and int4 are for the CPU: products with"
        " stored weights, by ONNX Runtime's own quantiser.",
    ),
    click.option(
        "--float32",
        multiple=True,
        metavar="NODE",
        help="With --to int8 or int4: a product of model.onnx that stays in float32, by its name."
        " Repeatable.",
    ),
    _output("The package directory to write."),
    JSON,
)

INLINE = (
    PACKAGE,
    _output("The ONNX file to write.", metavar="FILE.onnx"),
    JSON,
)

PRUNE = (
    PACKAGE,
    click.option(
        "--keep",
        required=True,
        metavar="N|PERCENT%",
        help="Heads that each layer keeps: a number such as 12, or a share of each layer's heads"
        " such as 75%.",
    ),
    click.option(
        "--by",
        type=click.Choice(["load", "gate"]),
        default="load",
        show_default=True,
        help="Keep the heads that are open for most tokens, or those with the largest mean gate.",
    ),
    _inputs("Count heads on these inputs instead of the recorded ones."),
    click.option(
        "--allow-whole",
        is_flag=True,
        help="Let a layer whose weights cannot be cut stay whole, with gates of 0 for the heads"
        " that are not kept.",
    ),
    _output("The package directory to write."),
    JSON,
)

BUILD = (
    PACKAGE,
    click.option(
        "--backend",
        required=True,
        type=click.Choice(["tensorrt", "tensorrt-rtx"]),
        help="What builds and runs the engine. tensorrt builds for the GPU of this machine;"
        " tensorrt-rtx needs none.",
    ),
    _output("The directory to write.", metavar="ENGINE_DIR"),
    click.option(
        "--precision",
        metavar="float32|float16|bfloat16",
        help="Lower a float32 package first, as `moh-deploy precision` does."
        "  [default: the package's]",
    ),
    click.option(
        "--profile",
        "profiles",
        multiple=True,
        metavar="NAME=MIN..OPT..MAX,...",
        help="Sizes of the dynamic dimensions, such as batch=1..8..32,seq=128. Repeatable: one"
        " profile each.  [default: up to four times the example's sizes]",
    ),
    click.option(
        "--compute-capability",
        "compute_capabilities",
        multiple=True,
        metavar="8.6 ...",
        help="GPUs to build for, all in one engine; tensorrt-rtx only."
        "  [default: 8.0 8.6 8.9 12.0]",
    ),
    _cache(
        "in-place",
        help="Build from the package with its caches in place, as export --cache in-place writes"
        " it: TensorRT 10.15 or later.  [default: as the package has them]",
    ),
    click.option("--workspace", metavar="SIZE", help="The most scratch memory of a layer: 4GiB."),
    _path(
        "--timing-cache",
        "FILE",
        "Keep what tensorrt measures, for the next build on the same machine.",
    ),
    _flag(
        "--require-kernels",
        "Let kernels run whatever they take, timed or not; fail where an MoH layer would not run by"
        " them.",
    ),
    _flag("--plain", "Use no kernels: the engine that others are to be compared with."),
    _flag("--embed-plugin", "Put the plugin library into the engine."),
    _path(
        "--plugin", "FILE", "The plugin library, libmoh_plugin.so.  [default: the installed one]"
    ),
    _flag("--keep-onnx", "Keep the lowered model beside the engine, for trtexec."),
    _flag("--version-compatible", "Let later versions of TensorRT run the engine; tensorrt only."),
    click.option(
        "--hardware-compatibility",
        type=click.Choice(["ampere-plus", "same-compute-capability"]),
        help="Let other GPUs run the engine; tensorrt only.",
    ),
    _flag("--dry-run", "Say what would be built or refused; write nothing."),
    JSON,
)

_LABEL_FILE = click.option(
    "--labels",
    type=NAME_OR_PATH,
    metavar="FILE|MEMBER",
    help="Labels of the samples in --inputs: a npy, npz or csv file, or a member of the inputs"
    " files. [N] classes, or [N, S] tokens. Then samples run in batches, and accuracy is"
    " compared, too.",
)
_SCORED = (
    click.option(
        "--label-output", metavar="NAME", help="The output to score, where shapes do not tell."
    ),
    click.option(
        "--ignore-label",
        metavar="NUMBER",
        type=int,
        default=-100,
        show_default=True,
        help="Labels of this number are not scored.",
    ),
    _flag(
        "--shift-labels",
        "Labels are the tokens that the model is given: an output is scored with the label of"
        " the next position. Without, with that of its own.",
    ),
    click.option(
        "--batch-size",
        metavar="N",
        type=click.IntRange(min=1),
        help="Samples that run at once, if there are labels.",
    ),
)
_LABELS = (
    _LABEL_FILE,
    _many(
        "--metric",
        "NAME",
        "top-1, top-5, perplexity, or MODULE:FUNCTION, which takes outputs by name and labels"
        " and returns a score for each sample; --code-dir says where it is. Without: top-1 for [N],"
        " perplexity for [N, S].",
    ),
    click.option(
        "--better",
        type=click.Choice(["higher", "lower"]),
        help="Which scores of MODULE:FUNCTION are better.",
    ),
    *_SCORED,
)

VERIFY = (
    PACKAGE,
    _inputs(
        "Compare on these inputs instead of the recorded ones. Members named like outputs are the"
        " expected outputs; without them the reference is the package's own function bodies, run"
        " with optimisations off. Of a directory all *.npz are taken."
    ),
    _many(
        "--against",
        "WHAT",
        "What to compare with instead: `functions` (its function bodies, optimisations off),"
        " `kernels`, `recorded`, another package or engine, an ONNX model, or the checkpoint (.pt,"
        " .safetensors, .pt2), which PyTorch runs.",
        type=NAME_OR_PATH,
    ),
    _valid_tokens(
        "The input, or member of the files, that is 1 for valid tokens and 0 for padding,"
        " [batch, tokens], or that is added to scores, 0 for valid tokens: what is computed for"
        " padding is not compared. `all` compares all tokens."
        "  [default: what the package names]"
    ),
    _vectors("Compare with the first N recorded runs only; the first is at the example's sizes."),
    _path(
        "--package", "DIR", "The package that an engine was built from, if an engine is verified."
    ),
    click.option("--staged", is_flag=True, hidden=True),  # for whoever writes the package
    POLICY,
    REPORT_FILES,
    BASELINE_FILE,
    _LABELS,
    RUNTIME,
    KERNELS,
    MODEL_OPTIONS,
    JSON,
)

PROBE = (
    PACKAGE,
    _inputs("Search these inputs for the tokens whose choice of heads is least clear."),
    _flag(
        "--update-corpus",
        "Keep what was found in the regression corpus of the package, which `verify` runs too.",
    ),
    _valid_tokens(
        "The input that is 1 for valid tokens and 0 for padding, [batch, tokens]: for the case of"
        " padding only. Padding is not compared in other cases, and not searched. `all` takes none."
        "  [default: what the package names]"
    ),
    _many(
        "--longest",
        "DIM=N",
        "What counts as longest, in place of what the trace is good for or what fits into memory.",
        callback=_read(parse_longest),
    ),
    POLICY,
    JUNIT,
    _checkpoint(
        "The original model: it, and not the function bodies, records what is found in the inputs."
        " Options that say how it is loaded are those of `moh-deploy export`."
    ),
    RUNTIME,
    KERNELS,
    MODEL_OPTIONS,
    JSON,
)

BISECT = (
    PACKAGE,
    _path(
        "--reference",
        "DIR",
        "A float32 package of the same model: the one that this one was lowered from, or one"
        " that is right. It names the node and what is different about it, and gives float32"
        " weights.",
    ),
    _output("Write the package again with the nodes in float32 that need it.", required=False),
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
    _inputs(
        "Run these inputs besides the recorded ones; expected is what the package computes in"
        " float32, or what the reference does."
    ),
    _vectors("Use the first N recorded runs only; the first is at the example's sizes."),
    POLICY,
    KERNELS,
    JSON,
)

TUNE = (
    PACKAGE,
    _inputs(
        "Measure on these inputs instead of the recorded ones; what is chosen is good for their"
        " sizes."
    ),
    click.option(
        "--weight",
        "weights",
        multiple=True,
        metavar="N",
        type=float,
        help="How often a file of --inputs counts, in their order, in a directory that of names: 1"
        " for a prefill, 200 for a decoding step. Repeatable.  [default: 1 each]",
    ),
    RUNTIME,
    _threads(
        "Threads within an operator. One thread is measured by CPU time, several by wall time."
    ),
    _min_time("How long each comparison takes at least.", default="500ms"),
    _many(
        "--choose",
        "LAYER=CHOICE",
        "Do not measure: let this layer, or all, be dense, sparse or projected;"
        " 'LAYER[seq<=64]=dense' up to a size only.",
        callback=_read(parse_choices),
    ),
    _flag(
        "--one-choice",
        "Let no choice depend on sizes: each layer gets the one that is fastest for all inputs"
        " together.",
    ),
    _many(
        "--within",
        "CONDITION",
        "Choose the runtime and the precision, too: the fastest of all that are there under this"
        " condition, such as 'top-1 >= 0.98 * reference' (with --labels), 'flips <= 0.1 %' or"
        " 'parity'. DIR is in float32 and stays as it is. --runtime tries one only.",
    ),
    _output("With --within: the package to write.", required=False),
    _LABEL_FILE,
    _SCORED,
    _many("--code-dir", "DIR", "Where the module of a metric is.", to="code_dirs", type=FILE_PATH),
    _flag("--dry-run", "Measure and report, but write nothing."),
    JSON,
)

BENCH = (
    click.argument("package_dirs", metavar="DIR...", nargs=-1, required=True, type=FILE_PATH),
    _many(
        "--baseline",
        "dense|functions|fixed-routing|plain-engine|eager|plain-onnx|DIR|FILE.onnx",
        "Compare with the first package with every layer dense, with its function bodies,"
        " without its routers (fixed-routing:LAYER: one of them); with the first engine without"
        " kernels; with the original in PyTorch,"
        " with its export by PyTorch alone; with another package, engine or model.",
        to="baselines",
        type=NAME_OR_PATH,
    ),
    _path(
        "--package",
        "DIR",
        "The package that the first DIR was built from, if that is an engine: what to run it on.",
    ),
    _checkpoint(
        "The original model, for --baseline eager and plain-onnx. The next seven options say how"
        " to load it, as for export."
    ),
    MODEL_OPTIONS,
    _threads("Threads within an operator."),
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
        callback=_read(parse_sizes),
        help="Sizes of other dynamic dimensions to run at; all combinations are measured.",
    ),
    _inputs("Run on these inputs instead of the recorded ones."),
    _min_time("How long all contestants run in turn, on each set of inputs.", default="5s"),
    click.option(
        "--warmup",
        metavar="TIME",
        default="500ms",
        show_default=True,
        callback=_seconds,
        help="How long they run before, untimed.",
    ),
    _many(
        "--gate",
        "CONDITION",
        "Fail unless this holds for every DIR: 'p50 <= 1.05 * baseline', 'p99 < 20 ms'.",
        to="gates",
    ),
    BASELINE_FILE,
    RUNTIME,
    KERNELS,
    REPORT_FILES,
    JSON,
)

COMPARE = (
    click.argument("paths", metavar="[PATH]...", nargs=-1, type=FILE_PATH),
    _path("--plan", "FILE.yaml", "The plan: arms, metrics, margins, written before the data."),
    _path("--new-plan", "FILE.yaml", "Write a plan to fill in, and do nothing else."),
    _path(
        "--earlier",
        "FILE.json",
        "The JSON report of the look before, where the plan allows several.",
    ),
    _inputs("Without a plan: labelled samples."),
    click.option(
        "--labels",
        metavar="FILE|MEMBER",
        type=NAME_OR_PATH,
        help="Without a plan: their labels. Without these time alone decides.",
    ),
    click.option(
        "--metric", metavar="NAME", help="Without a plan: what is scored.  [default: top-1]"
    ),
    click.option(
        "--may-lose",
        type=float,
        metavar="LOSS",
        help="Without a plan: how much of the metric an arm may lose, in its own units."
        "  [default: 0.005]",
    ),
    click.option(
        "--at-least",
        type=float,
        metavar="SHARE",
        help="Without a plan: the share of the reference's median time that has to be saved."
        "  [default: 0.1]",
    ),
    click.option(
        "--seconds",
        type=float,
        metavar="N",
        help="Without a plan: how long all arms run in turns.  [default: 10]",
    ),
    _threads("Without a plan: threads within an operator."),
    _path(
        "--keep-scores",
        "DIR",
        "Keep scores of samples, by blocks: an interrupted comparison goes on there.",
    ),
    click.option(
        "--ray",
        metavar="ADDRESS|auto",
        help="A Ray cluster that scores samples; times are of this machine.",
    ),
    REPORT_FILES[1:],
    JSON,
)

COST = (
    click.option(
        "--from",
        "decision",
        required=True,
        metavar="FILE.json",
        type=FILE_PATH,
        help="The decision: what `moh-deploy compare --json` printed.",
    ),
    _path("--prices", "FILE.yaml", "What machines and people cost.", required=True),
    _path(
        "--traffic",
        "FILE.csv",
        "A column for each dimension, and `count`, or `timestamp` where each line is a request.",
        required=True,
    ),
    click.option(
        "--days",
        type=float,
        metavar="N",
        help="How many days the traffic is of.  [default: a month for counts, what its timestamps"
        " span for a log]",
    ),
    _flag(
        "--extrapolate",
        "Take sizes that lie between two measured ones from their times, and mark them.",
    ),
    _path(
        "--package",
        "DIR",
        "Predict for this package where skipping heads breaks even: by layer, in batch size and in"
        " the share of open heads.",
    ),
    REPORT_FILES[1:],
    JSON,
)

RUN = (
    PACKAGE,
    _path("--inputs", "FILE.npz", "Inputs, named as in the model or in its order.", required=True),
    _path(
        "--outputs", "FILE.npz", "Where to write the outputs, named as in the model.", required=True
    ),
    RUNTIME,
    KERNELS,
    JSON,
)


def _setting(
    name: str, metavar: str, kind: click.ParamType[Any], help: str, default: object
) -> _Setting:
    """An option of how a model is served: `bundle` writes its default, `serve` may find another in
    a bundle."""

    def option(*, is_written: bool) -> Option:
        if is_written:
            return click.option(
                name, metavar=metavar, type=kind, default=default, show_default=True, help=help
            )
        return click.option(name, metavar=metavar, type=kind, help=f"{help}  [default: {default}]")

    return option


_BATCHING = (
    _setting(
        "--max-batch",
        "N",
        click.IntRange(min=1),
        "The most samples that are joined into one batch.",
        64,
    ),
    _setting(
        "--max-delay-ms",
        "MS",
        click.FloatRange(min=0),
        "How long the first request of a batch waits for others. 0: as long as all instances are"
        " busy.",
        1,
    ),
    _setting(
        "--sample-every",
        "N",
        click.IntRange(min=0),
        "Read routing of one batch in N for the metrics; 0: of none.",
        128,
    ),
)
_SHADOW_SHARE = _setting(
    "--shadow-share", "SHARE", click.FloatRange(0, 1, min_open=True), "That share.", 0.05
)
_PER_HEAD = _flag("--per-head", "Count head by head, not by layer alone: more series.")
_REFERENCE = _path(
    "--reference",
    "FILE.json",
    "A routing profile (`moh-deploy profile`): metrics show how far live routing is from it.",
)
_GUARD = click.option(
    "--guard",
    metavar="FILE.yaml|default",
    type=NAME_OR_PATH,
    help="Judge answers, and answer by a rung below where the first fails, by this policy; default:"
    " kernels, then function bodies.",
)
_PLANTS_FAULTS = _flag("--drill", "Let the guard's control file plant faults: for rehearsals only.")
_SHADOW = _path(
    "--shadow", "DIR", "A package to run beside on a share of the batches, and to compare."
)

SERVE = (
    PACKAGE,
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen at. Whoever reaches it may ask: TLS and passwords are a proxy's.",
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        metavar="N",
        default=8000,
        show_default=True,
        help="Port to listen at; 0 for any that is free.",
    ),
    click.option(
        "--name", help="What clients call the model.  [default: the bundle's, or the name of DIR]"
    ),
    _count("--instances", "How many batches run at the same time.  [default: cores by threads]"),
    _count("--threads", "Threads of each instance.  [default: cores by instances]"),
    *(one(is_written=False) for one in _BATCHING),
    _PER_HEAD,
    _REFERENCE,
    _GUARD,
    _path("--audit-log", "FILE", "Append what the guard does to this file, as JSON lines."),
    _path("--control", "FILE", "The guard's control file: manual switch, alarms of drift."),
    _PLANTS_FAULTS,
    _SHADOW,
    _SHADOW_SHARE(is_written=False),
    _count("--max-queue", "The most requests that wait; then 503, with Retry-After.", default=256),
    _count("--max-body", "The largest body of a request, in MiB; then 413.", default=64),
    _many(
        "--longest",
        "DIM=N",
        "The largest size of a dynamic dimension, seq=512; then 400. A long sequence is a small"
        " body, but much work.",
        callback=_read(parse_longest),
    ),
    _time("--read-timeout", "How long a request may take to arrive; then 408.", default="20s"),
    _time("--request-timeout", "How long it waits for its answer; then 504.", default="60s"),
    _time(
        "--shutdown-timeout",
        "How long requests that have arrived are still answered at the end.",
        default="30s",
    ),
    JSON,
)

_FAULT_NAMES = "nan|gates|slow|crash|drift|missing-library|wrong|kill"

DRILL = (
    PACKAGE,
    _many("--fault", _FAULT_NAMES, "Plant this, and no other.  [default: all]", to="faults"),
    _path(
        "--policy",
        "FILE.yaml",
        "The guard's policy, as `serve` takes it.  [default: one of short cool-downs]",
    ),
    click.option(
        "--clients",
        metavar="N",
        type=click.IntRange(1, 256),
        default=4,
        show_default=True,
        help="How many ask at the same time.",
    ),
    _time("--seconds", "How long the load runs before, and each fault stays.", default="3s"),
    _time(
        "--trip-timeout", "How long a fault stays that the guard has not noticed.", default="10s"
    ),
    _time("--return-timeout", "How long the first rung may take to come back.", default="60s"),
    _flag("--in-process", "Serve in this process, by no protocol: without a worker to kill."),
    _path(
        "--tritonserver",
        "DIR",
        "Serve a bundle by this Triton: the folder with bin/tritonserver, or an environment with"
        " nvidia-pytriton.  [default: moh-deploy serve]",
    ),
    click.option(
        "--url",
        metavar="http://HOST:PORT",
        help="Break this server, which runs with --guard and --drill; its files have to be here.",
    ),
    click.option("--name", help="What that server calls the model.  [default: of the bundle]"),
    _path("--control", "FILE", "Its control file.  [default: that of the bundle]"),
    _path("--audit-log", "FILE", "Its audit log.  [default: that of the bundle]"),
    REPORT_FILES,
    JSON,
)

GENERATE = (
    PACKAGE,
    _many("--prompt", "TEXT", "What to go on with.", to="prompts"),
    _many(
        "--tokens",
        "N,N,...",
        "A prompt as numbers of tokens: needs no tokenizer.",
        callback=_read(parse_tokens),
    ),
    _count("--max-tokens", "The most tokens that are added to each prompt.", default=64),
    click.option(
        "--temperature",
        metavar="T",
        type=float,
        default=0.0,
        show_default=True,
        help="Draw tokens, from logits divided by this. 0 takes the likeliest.",
    ),
    click.option(
        "--top-p",
        metavar="P",
        type=float,
        default=1.0,
        show_default=True,
        help="Draw among the likeliest tokens that together have this probability.",
    ),
    click.option(
        "--seed", metavar="N", type=int, default=0, show_default=True, help="Of the draws."
    ),
    _path(
        "--against",
        "DIR|FILE",
        "Compare tokens, the likeliest ones, with another package or with the original: its model"
        " directory or checkpoint. Exit 1 where one differs by more than rounding explains.",
    ),
    KERNELS,
    MODEL_OPTIONS,
    JSON,
)

INSPECT = (PACKAGE, KERNELS, JSON)

PROFILE = (
    PACKAGE,
    _many(
        "--inputs",
        "FILE.npz|DIR",
        "Requests that are known to be good, or a dump of a served model's window.",
        type=FILE_PATH,
        required=True,
    ),
    _output("Reference to write.", metavar="FILE.json"),
    click.option(
        "--request-size",
        metavar="N",
        type=int,
        default=1,
        show_default=True,
        help="Samples of a request: files of inputs are cut into such.",
    ),
    click.option(
        "--window",
        metavar="N",
        type=int,
        default=256,
        show_default=True,
        help="Requests of the smallest window that `watch` will judge.",
    ),
    click.option(
        "--false-alarms",
        metavar="SHARE",
        type=float,
        default=0.001,
        show_default=True,
        help="Share of windows of unchanged traffic that may alarm.",
    ),
    KERNELS,
    JSON,
)

WATCH = (
    click.argument("source"),
    _path("--reference", "FILE.json", "What `moh-deploy profile` wrote.", required=True),
    click.option(
        "--every",
        metavar="TIME",
        default="60s",
        show_default=True,
        callback=_seconds,
        help="Time between two looks at metrics.",
    ),
    click.option(
        "--windows",
        metavar="N",
        type=int,
        default=1,
        show_default=True,
        help="How often to look at metrics after the first time.",
    ),
    REPORT_FILES,
    JSON,
)

DOCTOR = (
    click.argument("artefact", metavar="[DIR]", required=False, type=FILE_PATH),
    _path("--plugin", "FILE", "The plugin library for TensorRT, if not the installation's."),
    JSON,
)

BUNDLE = (
    click.argument("artefact", metavar="[DIR]", required=False, type=FILE_PATH),
    _output("The bundle to write; an earlier one is replaced.", required=False),
    click.option(
        "--target",
        type=click.Choice(["triton", "genai"]),
        default="triton",
        show_default=True,
        help="The server that is to load it, or genai: onnxruntime-genai, for language models.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["python", "onnxruntime", "tensorrt"]),
        help="What runs the model in the server: moh-deploy in its Python backend (telemetry,"
        " guard), or the server's own.  [default: tensorrt for an engine, else python]",
    ),
    click.option(
        "--name", metavar="NAME", help="What clients call the model.  [default: the directory's]"
    ),
    _count("--instances", "How many batches run at the same time.", default=1),
    _count("--threads", "Threads of each instance.  [default: cores by instances; onnxruntime: 1]"),
    *(one(is_written=True) for one in _BATCHING),
    _PER_HEAD,
    _GUARD,
    _path("--fallback", "DIR", "The package of the policy's rung of kind package."),
    _SHADOW,
    _SHADOW_SHARE(is_written=True),
    _PLANTS_FAULTS,
    _REFERENCE,
    click.option("--image", metavar="IMAGE", help="The container that kserve.yaml names."),
    click.option(
        "--storage", metavar="URI", help="Where kserve.yaml says the bundle is: pvc://models/NAME."
    ),
    _path("--check", "BUNDLE", "Say why a server on this machine would not load this bundle."),
    _path(
        "--server",
        "DIR",
        "With --check: the folder with bin/tritonserver, or an environment with nvidia-pytriton."
        "  [default: what is installed]",
    ),
    JSON,
)
