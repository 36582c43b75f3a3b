"""Options and arguments that several commands have, each once; see `command`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypedDict, TypeVar

import click

from moh_deploy.cli.command import Argument, Default, OptionGroup, Under
from moh_deploy.cli.values import name_or_path, seconds
from moh_deploy.config.dtypes import Runtime

if TYPE_CHECKING:
    from moh_deploy.runtime.kernel_use import Kernels

_Number = TypeVar("_Number")

POSITIVE = click.IntRange(min=1)

PackagePath: TypeAlias = Annotated[Path, Argument("DIR")]
ArtefactDir: TypeAlias = Annotated[Path | None, Argument("[DIR]")]
Json: TypeAlias = Annotated[
    bool, "--json", "Print one JSON object on stdout, and nothing else.", Under("Reports")
]
Verbose: TypeAlias = Annotated[
    bool, "--verbose", "Print all tables, with all columns.", Under("Reports")
]
RuntimeName: TypeAlias = Annotated[
    Runtime | None,
    "What runs a package. openvino compiles it for each shape, and runs bfloat16 where the"
    " processor can: pip install 'moh-deploy[openvino]'. onnxruntime-cuda needs an NVIDIA GPU and"
    " the wheel onnxruntime-gpu: `moh-deploy help runtimes`."
    "  [default: what it was tuned for, or else onnxruntime]",
]
KernelChoice: TypeAlias = Annotated[
    "Kernels",
    "Run MoH nodes on the kernel library where there is one, on their function bodies only, or fail"
    " if there is no kernel.",
    click.Choice(["auto", "off", "require"]),
    Default("auto"),
]
PolicyFile: TypeAlias = Annotated[
    Path | None,
    "FILE.yaml",
    "Tolerances that replace those of the built-in table, each with its reason. `verify` reads"
    " there what accuracy may lose, too.",
    Under("What is compared"),
]
Within: TypeAlias = Annotated[
    tuple[str, ...],
    "CONDITION",
    "Fail if this does not hold besides: 'flips <= 0.1 %', or with --labels"
    " 'top-1 >= 0.98 * reference'.",
]
BaselineFile: TypeAlias = Annotated[
    Path | None,
    "FILE.json",
    "Fail if a figure is worse than in this file, by more than its slack: `moh-deploy help ci`.",
    Under("Reports"),
]
UpdateBaseline: TypeAlias = Annotated[
    bool, "Write what is new or better into that file, never what is worse.", Under("Reports")
]


class ReportPaths(TypedDict, total=False):
    """Where a report is written, beside stdout."""

    junit: Annotated[Path | None, "FILE", "Write JUnit XML for a CI."]
    markdown: Annotated[Path | None, "FILE", "Write Markdown for a pull request."]
    html: Annotated[Path | None, "FILE", "Write one HTML page that needs nothing else."]


ReportFiles: TypeAlias = Annotated[ReportPaths, OptionGroup("Reports")]
ReportPages: TypeAlias = Annotated[ReportPaths, OptionGroup("Reports", ("markdown", "html"))]

TrustPickle: TypeAlias = Annotated[bool, "Allow unpickling a module: it runs code from the file."]
TrustCode: TypeAlias = Annotated[
    bool,
    "Run code that a file names or brings along: a configuration, a plan, a model directory, or a"
    " bundle with native code that is not of this installation.",
]


class LoadingSettings(TypedDict):
    """Options that load a checkpoint: fields of `ModelOptions`."""

    config: Annotated[Path | None, "FILE.yaml", "Settings from a file."]
    overrides: Annotated[
        tuple[str, ...],
        "--set KEY=VALUE",
        "A setting that wins over the file's: model.kwargs.depth=2.",
    ]
    factory: Annotated[
        str | None, "MODULE:CALLABLE", "What builds the model that a state dict belongs to."
    ]
    code_dirs: Annotated[tuple[Path, ...], "--code-dir DIR", "Import the model's code from here."]
    state_key: Annotated[
        str | None, "KEY", "Where a training checkpoint keeps the weights: model, ema."
    ]
    trust_pickle: TrustPickle
    trust_code: TrustCode
    task: Annotated[
        Literal["text-generation"] | None,
        "Export a language model with what generating text takes: tokens, a mask over cache"
        " and tokens, and the cache, all named as Hugging Face names them.",
    ]
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        "Bring the model and its inputs to this dtype first. Without: as in the checkpoint.",
    ]


Loading: TypeAlias = Annotated[LoadingSettings, OptionGroup("Loading MODEL")]
OriginalLoading: TypeAlias = Annotated[
    LoadingSettings, OptionGroup("Loading the original", shown_by="--help-loading")
]

InputWeights: TypeAlias = Annotated[
    tuple[float, ...],
    "--weight N",
    "How often a file of --inputs counts, in their order, in a directory that of names: 1"
    " for a prefill, 200 for a decoding step. Repeatable.  [default: 1 each]",
    Under("The measurement"),
]
Threads: TypeAlias = Annotated[
    int | None,
    "N",
    "Threads within an operator. One thread is measured by CPU time, several by wall time."
    "  [default: as the runtime chooses]",
    Under("The measurement"),
]
TuneTime: TypeAlias = Annotated[
    float,
    "TIME",
    "How long each comparison takes at least.",
    seconds,
    Default("500ms"),
    Under("The measurement"),
]
OneChoice: TypeAlias = Annotated[
    bool,
    "Let no choice depend on sizes: each layer gets the one that is fastest for all inputs"
    " together.",
    Under("The measurement"),
]

LabelFile: TypeAlias = Annotated[
    str | None,
    "FILE|MEMBER",
    "Labels of the samples in --inputs: a npy, npz or csv file, or a member of the inputs files."
    " [N] classes, or [N, S] tokens. Then samples run in batches, and accuracy is compared, too.",
    name_or_path(),
]
MetricCode: TypeAlias = Annotated[
    tuple[Path, ...], "--code-dir DIR", "Where the module of a metric is.", Under("Accuracy")
]


class ScoringSettings(TypedDict):
    """Options that score samples with labels."""

    label_output: Annotated[str | None, "NAME", "The output to score, where shapes do not tell."]
    ignore_label: Annotated[int, "NUMBER", "Labels of this number are not scored.", Default(-100)]
    shift_labels: Annotated[
        bool,
        "Labels are the tokens that the model is given: an output is scored with the label of the"
        " next position. Without, with that of its own.",
    ]
    batch_size: Annotated[
        int | None, "N", "Samples that run at once, if there are labels.", POSITIVE
    ]


Scoring: TypeAlias = Annotated[ScoringSettings, OptionGroup("Accuracy")]

# How a model is served: `bundle` writes it down, and `serve` takes a bundle's value before the
# usual one, so that there what is not given is None.

MaxBatch: TypeAlias = Annotated[
    _Number,
    "N",
    "The most samples that are joined into one batch.  [default: 64]",
    POSITIVE,
    Under("Batches and threads"),
]
MaxDelay: TypeAlias = Annotated[
    _Number,
    "MS",
    "How long the first request of a batch waits for others. 0: as long as all instances are busy."
    "  [default: 1]",
    click.FloatRange(min=0),
    Under("Batches and threads"),
]
SampleEvery: TypeAlias = Annotated[
    _Number,
    "N",
    "Read routing of one batch in N for the metrics; 0: of none.  [default: 128]",
    click.IntRange(min=0),
    Under("Metrics"),
]
ShadowShare: TypeAlias = Annotated[
    _Number,
    "SHARE",
    "The share of batches that the package of --shadow runs, too.  [default: 0.05]",
    click.FloatRange(0, 1, min_open=True),
    Under("Guard and shadow"),
]
PerHead: TypeAlias = Annotated[
    bool, "Count head by head, not by layer alone: more series.", Under("Metrics")
]
Otlp: TypeAlias = Annotated[
    str | None,
    "URL",
    "Send metrics to a collector of OpenTelemetry, too, by OTLP over HTTP: http://collector:4318."
    " Needs pip install 'moh-deploy[otel]' where the model is served.",
    Under("Metrics"),
]
RoutingProfile: TypeAlias = Annotated[
    Path | None,
    "FILE.json",
    "A routing profile (`moh-deploy profile`): metrics show how far live routing is from it.",
    Under("Metrics"),
]
GuardFile: TypeAlias = Annotated[
    str | None,
    "FILE.yaml|default",
    "Judge answers, and answer by a lower level where the first fails, by this policy; default:"
    " kernels, then function bodies.",
    name_or_path("default"),
    Under("Guard and shadow"),
]
PlantsFaults: TypeAlias = Annotated[
    bool,
    "Let the guard's control file plant faults: for rehearsals only.",
    Under("Guard and shadow"),
]
ShadowDir: TypeAlias = Annotated[
    Path | None,
    "DIR",
    "A package to run beside on a share of the batches, and to compare.",
    Under("Guard and shadow"),
]
