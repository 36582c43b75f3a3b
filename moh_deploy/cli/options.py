"""Options and arguments that several commands have, each once, and short ways to make others.

A command's own options stand in its file, `cli/COMMAND.py`. Parameters are named as those of the
public function, so that a command hands them on as they are: a new option is a few lines there and
a parameter in `api/COMMAND.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from moh_deploy.cli.values import FILE_PATH, NAME_OR_PATH, seconds
from moh_deploy.config.dtypes import RUNTIMES

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Any], Any]
"""What adds one option to a command."""


def takes(*options: Option | Sequence[Option]) -> Callable[[Command], Command]:
    """Add options and groups of options to a command, in the order in which `--help` shows them."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command) if callable(option) else takes(*option)(command)
        return command

    return add


# Kinds of options.


def flag(name: str, help: str) -> Option:
    return click.option(name, is_flag=True, help=help)


def path(name: str, metavar: str, help: str, **settings: Any) -> Option:
    return click.option(name, metavar=metavar, type=FILE_PATH, help=help, **settings)


def many(name: str, metavar: str, help: str, *, to: str | None = None, **settings: Any) -> Option:
    """An option that may be given several times; `to` is the parameter that gets all values."""
    names = [name] if to is None else [name, to]
    help = f"{help} Repeatable."
    return click.option(*names, multiple=True, metavar=metavar, help=help, **settings)


def positive(name: str, help: str, *, default: int | None = None) -> Option:
    return click.option(
        name,
        metavar="N",
        type=click.IntRange(min=1),
        default=default,
        show_default=default is not None,
        help=help,
    )


def time(name: str, help: str, *, default: str) -> Option:
    return click.option(
        name,
        metavar="TIME",
        default=default,
        show_default=True,
        callback=seconds,
        help=help,
    )


# Options that several commands have; what they mean for one of them, its file says.

PACKAGE = click.argument("package_dir", metavar="DIR", type=FILE_PATH)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else."
)
RUNTIME = click.option(
    "--runtime",
    type=click.Choice(list(RUNTIMES)),
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
POLICY = path(
    "--policy",
    "FILE.yaml",
    "Tolerances that replace those of the built-in table, each with its reason. `verify` reads"
    " there what accuracy may lose, too.",
)
JUNIT = path("--junit", "FILE", "Write JUnit XML for a CI.")
REPORT_FILES = (
    JUNIT,
    path("--markdown", "FILE", "Write Markdown for a pull request."),
    path("--html", "FILE", "Write one HTML page that needs nothing else."),
)
WITHIN = many(
    "--within",
    "CONDITION",
    "Fail if this does not hold besides: 'flips <= 0.1 %', or with --labels"
    " 'top-1 >= 0.98 * reference'.",
)
BASELINE_FILE = (
    path(
        "--baseline-file",
        "FILE.json",
        "Fail if a figure is worse than in this file, by more than its slack; see docs/ci.md.",
    ),
    flag("--update-baseline", "Write what is new or better into that file, never what is worse."),
)


def inputs(help: str) -> Option:
    return many("--inputs", "FILE.npz|DIR", help, type=FILE_PATH)


def output(help: str, *, metavar: str = "DIR", required: bool = True) -> Option:
    return click.option(
        "--output", "-o", required=required, metavar=metavar, type=FILE_PATH, help=help
    )


def vectors(help: str) -> Option:
    return click.option("--vectors", metavar="N", type=int, help=help)


def valid_tokens_input(help: str) -> Option:
    return click.option("--valid-tokens", metavar="NAME", help=help)


def cache(*forms: str, help: str) -> Option:
    return click.option("--cache", type=click.Choice(forms), help=help)


def min_time(help: str, *, default: str) -> Option:
    return time("--min-time", help, default=default)


def threads(help: str) -> Option:
    return click.option(
        "--threads", metavar="N", type=int, help=f"{help}  [default: as the runtime chooses]"
    )


def checkpoint(help: str) -> Option:
    return path("--checkpoint", "FILE", help)


TRUST_PICKLE = flag("--trust-pickle", "Allow unpickling a module: it runs code from the file.")
TRUST_CODE = flag(
    "--trust-code",
    "Run code that a file names or brings along: a configuration, a plan, a model directory, or a"
    " bundle with native code that is not of this installation.",
)
# How a checkpoint is loaded: fields of `ModelOptions`.
MODEL_OPTIONS = (
    path("--config", "FILE.yaml", "Settings from a file."),
    many(
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
    many("--code-dir", "DIR", "Import the model's code from here.", to="code_dirs", type=FILE_PATH),
    click.option(
        "--state-key",
        metavar="KEY",
        help="Where a training checkpoint keeps the weights: model, ema.",
    ),
    TRUST_PICKLE,
    TRUST_CODE,
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


LABEL_FILE = click.option(
    "--labels",
    type=NAME_OR_PATH,
    metavar="FILE|MEMBER",
    help="Labels of the samples in --inputs: a npy, npz or csv file, or a member of the inputs"
    " files. [N] classes, or [N, S] tokens. Then samples run in batches, and accuracy is"
    " compared, too.",
)
SCORING_OPTIONS = (
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
    flag(
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


def _served(
    name: str, metavar: str, kind: click.ParamType[Any], help: str, default: float
) -> Option:
    """Make an option of `bundle`, which writes it down, and of `serve`: not given is None, and a
    bundle's value comes before the default."""
    return click.option(name, metavar=metavar, type=kind, help=f"{help}  [default: {default}]")


# How a model is served.
BATCHING = (
    _served(
        "--max-batch",
        "N",
        click.IntRange(min=1),
        "The most samples that are joined into one batch.",
        64,
    ),
    _served(
        "--max-delay-ms",
        "MS",
        click.FloatRange(min=0),
        "How long the first request of a batch waits for others. 0: as long as all instances are"
        " busy.",
        1,
    ),
    _served(
        "--sample-every",
        "N",
        click.IntRange(min=0),
        "Read routing of one batch in N for the metrics; 0: of none.",
        128,
    ),
)
SHADOW_SHARE = _served(
    "--shadow-share",
    "SHARE",
    click.FloatRange(0, 1, min_open=True),
    "The share of batches that the package of --shadow runs, too.",
    0.05,
)
PER_HEAD = flag("--per-head", "Count head by head, not by layer alone: more series.")
OTLP = click.option(
    "--otlp",
    metavar="URL",
    help="Send metrics to a collector of OpenTelemetry, too, by OTLP over HTTP:"
    " http://collector:4318. Needs pip install 'moh-deploy[otel]' where the model is served.",
)
REFERENCE = path(
    "--reference",
    "FILE.json",
    "A routing profile (`moh-deploy profile`): metrics show how far live routing is from it.",
)
GUARD = click.option(
    "--guard",
    metavar="FILE.yaml|default",
    type=NAME_OR_PATH,
    help="Judge answers, and answer by a rung below where the first fails, by this policy; default:"
    " kernels, then function bodies.",
)
PLANTS_FAULTS = flag("--drill", "Let the guard's control file plant faults: for rehearsals only.")
SHADOW = path(
    "--shadow", "DIR", "A package to run beside on a share of the batches, and to compare."
)
