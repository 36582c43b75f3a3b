"""The messages between the process that builds and the one that waits for it, as JSON lines.

The builder speaks first: its `Stack`. It then reads one `BuildRequest` from its stdin, tells steps,
and ends with a `BuildAnswer` or a `Failure`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import cast

from pydantic import TypeAdapter

ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Shapes of one input: min, opt, max."""


@dataclass(frozen=True)
class Stack:
    """The versions and the GPU that an engine depends on, besides what is asked for.

    Attributes:
        version: Of TensorRT or TensorRT-RTX.
        gpu: Name; None: there is none, or it does not matter.
        compute_capability: Of the GPU: `8.6`; None likewise.
        driver: Largest CUDA version that the driver takes; None likewise.
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
class BuildRequest:
    """The order to build an engine, or to parse a model only.

    Attributes:
        model: The ONNX file.
        engine: Where to write the engine; None: parse only.
        plugin: The plugin library; None: there are no plugins.
        creators: Ops that its creators have to make.
        embed_plugin: Put the library into the engine.
        compute_capabilities: `8.6` and the like; none: for the GPU that is there.
        profiles: Shapes of each input, one entry a profile.
        workspace_bytes: The most scratch memory of a layer; None: no limit.
        timing_cache: File of measured times to begin with; None: none.
        timing_cache_out: Where to write them; None: nowhere.
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


@dataclass(frozen=True)
class ParserError:
    """A node that the parser refuses, and why."""

    node: str
    operator: str
    text: str


@dataclass(frozen=True)
class BuildAnswer:
    """The answer to a request: what the network holds, and what was built.

    Attributes:
        errors: What the parser refused; then nothing was built.
        plugins: Names of the nodes that became plugins.
        types: Name of each tensor of the network to its dtype.
        engine_bytes: Size of the engine; None: none was asked for, or there were errors.
        seconds: How long the build took, without parsing.
    """

    errors: tuple[ParserError, ...] = ()
    plugins: tuple[str, ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    engine_bytes: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Nothing was built: TensorRT gave up, or a file could not be read or written.

    Attributes:
        text: What failed.
        errno: Of an error of the operating system; None: it was none.
    """

    text: str
    errno: int | None = None


@dataclass(frozen=True)
class BuildStep:
    """The phase of the build that begins now."""

    name: str


# What the builder says; it is told `BuildRequest` only.
Message = Stack | BuildStep | BuildAnswer | Failure
# The name of a message's class says of which kind a line is.
_KINDS = {kind.__name__: kind for kind in (Stack, BuildStep, BuildAnswer, Failure, BuildRequest)}


def encode(message: Message | BuildRequest) -> str:
    """Return a message as one line."""
    # JSON escapes newlines, so that a message is one line whatever text it holds.
    return json.dumps({type(message).__name__: asdict(message)}) + "\n"


def decode(line: str) -> Message | BuildRequest:
    """Return the message of a line."""
    ((name, content),) = json.loads(line).items()
    return cast("Message | BuildRequest", TypeAdapter(_KINDS[name]).validate_python(content))
