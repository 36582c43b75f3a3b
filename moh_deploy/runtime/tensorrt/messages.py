"""The messages between the process that builds and the one that waits for it, as JSON lines.

The builder speaks first: its `Stack`. It then reads requests from its stdin, one after the other,
tells steps, and answers each: a `BuildRequest` by a `BuildAnswer`, a `TimingRequest` by a
`TimingAnswer`. A `Failure` is its last word.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal, cast, get_args

from pydantic import TypeAdapter

ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Shapes of one input: min, opt, max."""


@dataclass(frozen=True)
class Stack:
    """The versions and the GPU that an engine depends on, besides what is asked for.

    `compute_capability` is `8.6` and the like, `driver` the largest CUDA version that the driver
    takes. All facts of the machine are None without a GPU, or where it does not matter.
    """

    version: str
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None

    def machine(self) -> dict[str, str]:
        """Return the known facts of the machine, by names for reports."""
        named = {
            "GPU": self.gpu,
            "compute capability": self.compute_capability,
            "CUDA of the driver": self.driver,
        }
        return {name: text for name, text in named.items() if text is not None}


@dataclass(frozen=True)
class BuilderOptions:
    """Options of TensorRT's builder that are passed on as they are."""

    refit: bool = False  # the engine's weights can be replaced
    weight_streaming: bool = False  # weights can stay in the host's memory, to be sent at each run
    strip_weights: bool = False  # the engine holds no weights; a refit brings them
    optimization_level: int | None = None  # 0 to 5: how long to search; None: TensorRT's own


@dataclass(frozen=True)
class BuildRequest:
    """The order to build an engine, or to parse a model only.

    Attributes:
        model: The ONNX file.
        engine: Where to write the engine; None: parse only.
        plugin: The plugin library; None: there are no plugins.
        creators: Ops that its creators have to make.
        profiles: Shapes of each input, one entry a profile.
        timing_cache: File of measured times to begin with; `timing_cache_out` takes the new ones.

    All else is as in `build_plan.BuildPlan`.
    """

    model: str
    engine: str | None
    plugin: str | None
    creators: tuple[str, ...]
    embed_plugin: bool
    compute_capabilities: tuple[str, ...]
    profiles: tuple[dict[str, ShapeRange], ...]
    workspace_bytes: int | None
    timing_cache: str | None = None
    timing_cache_out: str | None = None
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    builder: BuilderOptions = field(default_factory=BuilderOptions)


Fill = Literal["random", "gates", "seen", "filled", "ranges", "zero"]
"""What an input holds while networks are timed: normal numbers; gates, with a share of 1 and
the others 0; a mask that hides nothing; lengths beyond the last key, so that all count; ranges of
all keys; zeros."""


@dataclass(frozen=True)
class TimingRequest:
    """The order to time networks that compute the same, in turns."""

    # Name to how it is built; all have the same inputs and profiles.
    networks: dict[str, BuildRequest]
    fills: dict[str, Fill]  # name of each input to what it holds
    open_share: float  # share of the gates that is 1


@dataclass(frozen=True)
class TimingAnswer:
    """Name of each network to milliseconds of one run at the usual sizes of each profile; or to why
    there is no time."""

    times_ms: dict[str, tuple[float, ...]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ParserError:
    """A node that the parser refuses, and why."""

    node: str
    operator: str
    text: str


@dataclass(frozen=True)
class BuildAnswer:
    """The answer to a request: what the network holds, and what was built."""

    errors: tuple[ParserError, ...] = ()  # what the parser refused; then nothing was built
    plugins: tuple[str, ...] = ()  # names of the nodes that became plugins
    # Names of the nodes that became an attention of TensorRT's own.
    attentions: tuple[str, ...] = ()
    # Name of each tensor of the network to its dtype.
    types: dict[str, str] = field(default_factory=dict)
    # Size of the engine; None: none was asked for, or there were errors.
    engine_bytes: int | None = None
    seconds: float = 0.0  # how long the build took, without parsing


@dataclass(frozen=True)
class Failure:
    """Nothing was built: TensorRT gave up, or the operating system did, which has an `errno`."""

    text: str
    errno: int | None = None


@dataclass(frozen=True)
class BuildStep:
    """The phase of the build that begins now."""

    name: str


# What the builder says, and what it is told.
Message = Stack | BuildStep | BuildAnswer | TimingAnswer | Failure
Order = BuildRequest | TimingRequest
# The name of a message's class is the kind of a line.
_KINDS = {kind.__name__: kind for kind in get_args(Message) + get_args(Order)}


def encode(message: Message | Order) -> str:
    """Return a message as one line."""
    # JSON escapes newlines, so that a message is one line whatever text it holds.
    return json.dumps({type(message).__name__: asdict(message)}) + "\n"


def decode(line: str) -> Message | Order:
    """Return the message of a line."""
    ((name, content),) = json.loads(line).items()
    return cast("Message | Order", TypeAdapter(_KINDS[name]).validate_python(content))
