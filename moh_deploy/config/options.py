"""The options of loading a model, and of `export`.

No torch types: the command line builds it before torch loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

# How a decoder keeps keys and values: in buffers with room, or each time joined with new ones.
CacheForm = Literal["in-place", "concatenated"]

# How many MoH layers have to be replaced, or all.
RequiredLayers = int | Literal["all"]

if TYPE_CHECKING:
    from moh_deploy.config.dtypes import ComputeType


@dataclass(frozen=True)
class ModelOptions:
    """Options that load a model in PyTorch; they win over the configuration file."""

    # Path of the checkpoint, ONNX file or model directory, or a `torch.nn.Module` or
    # `torch.export.ExportedProgram` in memory.
    model: Path | object
    # Keyword-only: `ExportOptions` adds a field without a default behind these.
    config: Path | None = field(default=None, kw_only=True)  # YAML file with the same settings
    # `key=value` settings that win over the file's.
    overrides: tuple[str, ...] = field(default=(), kw_only=True)
    # `module:callable` that builds the model a state dict belongs to.
    factory: str | None = field(default=None, kw_only=True)
    # Directories to import the model's code from.
    code_dirs: tuple[Path, ...] = field(default=(), kw_only=True)
    # Key under which a training checkpoint holds the weights.
    state_key: str | None = field(default=None, kw_only=True)
    # Allow unpickling, which runs code from the file.
    trust_pickle: bool = field(default=False, kw_only=True)
    # Run code that a configuration names, or that a model directory brings along.
    trust_code: bool = field(default=False, kw_only=True)
    # `text-generation` gives a language model the inputs and outputs that generating text takes,
    # its cache among them; None takes the model's own.
    task: Literal["text-generation"] | None = field(default=None, kw_only=True)
    # Floating-point dtype for the model and its inputs; None keeps the checkpoint's.
    dtype: Literal["float32", "float16", "bfloat16"] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """The options of `moh-deploy export`."""

    output: Path  # package directory to write
    # None: they are made up, as `input_specs`, the configuration or an exported program say.
    # npz file whose members are the model's inputs, by the names of its parameters (or of an ONNX
    # file's inputs); or such a mapping, or a tuple of positional arguments, of nested values.
    inputs: Path | Mapping[str, object] | tuple[object, ...] | None = None
    dynamic: tuple[str, ...] = ()  # dynamic axes: `x:0=batch,2=height`
    # Inputs to make up: `x:[batch=2,3,224,224]:float32`, `ids:[8]:int64=0..999`.
    input_specs: tuple[str, ...] = ()
    # Names of the outputs, in order; empty lets the exporter name them.
    output_names: tuple[str, ...] = ()
    opset: int | None = None  # ONNX operator set; None picks the default, or that of an ONNX file
    # What kernels may round the operands of attention's matrix products to; None takes the
    # configuration's, or else float32.
    compute_type: ComputeType | None = None
    # How many MoH layers have to be replaced, or `all`: then the model has some, and nothing that
    # looks like one may be left. None takes the configuration's, or else requires none, as 0 does.
    require_layers: RequiredLayers | None = None
    # The input that is 1 for valid tokens and 0 for padding, [batch, tokens]; `not NAME`: 1 for
    # padding. Padding is not compared. `all`: every token counts. None takes the configuration's,
    # or else looks for it in the graph.
    valid_tokens: str | None = None
    # `in-place` lets a decoder write new keys and values into buffers, which it takes and returns;
    # `concatenated` leaves caches as the model has them. None is `concatenated`.
    cache: CacheForm | None = None
