"""Types of the manifest for the model's interface: inputs, outputs, and how it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from moh_deploy.config.export_config import ConstantValue
from moh_deploy.config.strict_json import Strict
from moh_deploy.ops.op_names import AttentionOp
from moh_deploy.ops.routers import FORMS

MOST_SIZE = 2**63 - 1
"""Sizes are int64 in ONNX."""

WholeSize = Annotated[int, Field(ge=0, le=MOST_SIZE)]
PositiveSize = Annotated[int, Field(ge=1, le=MOST_SIZE)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FLOATS = ("float16", "bfloat16", "float32", "float64")
Dtype = Annotated[
    str,
    Field(
        pattern=f"^({'|'.join(FLOATS)}|bool|u?int(4|8|16|32|64)|complex64|complex128"
        "|float8_e4m3fn|float8_e4m3fnuz|float8_e5m2|float8_e5m2fnuz)$"
    ),
]


@dataclass(frozen=True)
class TensorInfo(Strict):
    """Name, dtype (`float32`, `bfloat16`, `int64`, `bool`, ...) and shape of an input or output.

    A shape entry is an int (fixed) or a dimension expression: `"batch"`, `"past + 1"`.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class CallArgument(Strict):
    """A value that the original is called with: an input, a constant, or a container of such."""

    input: str | None = None  # name of the input; None for anything else
    value: ConstantValue = None  # the constant, of what is neither input nor container
    # `list`, `tuple`, `dict`, or the full name of a class; None for anything else.
    container: str | None = None
    # The keys of a dict; the fields of a dataclass; of another class what its registration with
    # PyTorch's pytrees keeps beside the items.
    context: JsonValue = None
    items: tuple[CallArgument, ...] = ()  # the values in the container, in its order

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in it, in order."""
        own = () if self.input is None else (self.input,)
        return own + tuple(name for item in self.items for name in item.inputs)


@dataclass(frozen=True)
class Call(Strict):
    """The call of the original: its positional arguments, and those by keyword."""

    args: tuple[CallArgument, ...]
    kwargs: dict[str, CallArgument]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the package's inputs, in the order in which the call has them."""
        return tuple(name for arg in (*self.args, *self.kwargs.values()) for name in arg.inputs)

    @property
    def is_plain(self) -> bool:
        """Tell whether the inputs themselves are the positional arguments."""
        return not self.kwargs and all(arg.input is not None for arg in self.args)


@dataclass(frozen=True)
class DimSum(Strict):
    """Dimensions that are limited together, as a cache and new tokens by a table of positions."""

    dims: tuple[str, ...]  # their names
    most: WholeSize  # the largest sum that the trace is good for
    # The weight that is cut at that length, and so has no more rows; None where none is.
    table: str | None = None

    def __str__(self) -> str:
        return f"{' + '.join(self.dims)} <= {self.most}"


@dataclass(frozen=True)
class CacheBuffer(Strict):
    """A cache of keys or values that is a buffer with room: an input, and an output that may be the
    same memory.
    """

    past: str  # name of the input
    present: str  # name of the output: the input with this call's tokens behind those that it had
    axis: int  # the axis of tokens


@dataclass(frozen=True)
class CachesInPlace(Strict):
    """The caches of a decoder that writes new keys and values where they belong."""

    buffers: tuple[CacheBuffer, ...]  # every cache. All have the same number of places.
    # How many places of each sequence were filled before the call: the name of an input, or what
    # follows from sizes: `total - seq`, `total - 1`, `past`.
    past_length: str
    new_length: str | int  # how many tokens a call adds: a dimension, or a number
    least_past: WholeSize = 0  # the fewest filled places that the trace is good for
    # The most tokens, filled before and new; None: as many as there are places.
    most_tokens: PositiveSize | None = None


@dataclass(frozen=True)
class TextGeneration(Strict):
    """Facts of a language model that generating text with it needs."""

    vocab_size: PositiveSize  # how many logits a token has
    # The most tokens of prompt and answer together; None if unknown.
    context_length: PositiveSize | None = None
    eos_token_ids: tuple[WholeSize, ...] = ()  # tokens that end a text
    bos_token_id: WholeSize | None = None  # the token that begins one, or None
    # What stands for padding, whose value does not matter; or None.
    pad_token_id: WholeSize | None = None
    # What its config calls the architecture: `llama`; None without a config.
    model_type: str | None = None


# Read the name of a mask of valid tokens: an input, or `not` and an input that is 1 for padding.
#
# `attention_mask` is 1 for valid tokens, `not key_padding_mask` is 1 for padding, as PyTorch has
# it.

_NOT = "not "


def mask_input(valid_tokens: str) -> str:
    """Return the name of the input, or member of a file, that holds the mask."""
    return valid_tokens.removeprefix(_NOT)


def marks_padding(valid_tokens: str) -> bool:
    """Tell whether the mask is 1 for padding, and not for valid tokens."""
    return valid_tokens.startswith(_NOT)


def mask_name(name: str, *, marks_padding: bool) -> str:
    """Return how a mask is named: see this module's first lines."""
    return f"{_NOT}{name}" if marks_padding else name


# Types of the manifest for MoH layers.

Choice = Literal["dense", "sparse", "projected"]
"""How a replaced layer is run: every head by its function bodies; the chosen heads by a kernel; the
chosen heads with their projections by kernels."""

# It limits what readers allocate for heads.
_Heads = Annotated[int, Field(ge=1, le=2**20)]
_Router = Annotated[str, Field(pattern=f"^({'|'.join(form.name for form in FORMS)})$")]


@dataclass(frozen=True)
class SizeRange(Strict):
    """Sizes of the model's inputs at which a layer has a choice of its own."""

    size: str  # what is compared: a dynamic dimension, or a product of some: `seq`, `batch*seq`
    at_most: WholeSize  # the largest value that is meant
    choice: Choice  # how the layer is run up to that


@dataclass(frozen=True)
class RouterTypes(Strict):
    """The dtypes of the stages of a layer's router, in a package of lower precision."""

    # Of the products that make the logits; None where the graph does not tell.
    projection: Dtype | None
    scores: Dtype  # of logits as the router reads them, and of softmax and the choice of heads
    gates: Dtype  # of the gates as the router returns them


@dataclass(frozen=True)
class LayerInfo(Strict):
    """One MoH layer of the exported model."""

    # Module path in the original model, such as `blocks.3.attn`; `model` for the model itself; with
    # `#2` for the second layer of one path: no two layers are called the same.
    path: Annotated[str, Field(min_length=1)]
    num_heads: _Heads  # query heads of the attention, shared ones included
    # Key and value heads; None where the attention is of a form that no op covers.
    num_kv_heads: PositiveSize | None
    head_dim: PositiveSize | None  # size of one head; None under the same condition
    # Heads that run for every token; None where the router's form does not tell.
    num_shared_heads: WholeSize | None
    # Routed heads that a token chooses; 0 where nothing is selected; None where the router's form
    # does not tell.
    top_k: WholeSize | None
    router: _Router  # name of the form of its router, one of `moh_deploy.ops.routers`
    # The router became a MoHRouter node (else it stays as plain ops in front).
    router_replaced: bool
    replaced: bool  # the attention became a node of `op`
    # Why it (or its router) was not replaced; None if both were, and for constant gates, which need
    # no router.
    reason: str | None
    node: str | None  # name of the node of `op` in model.onnx; None if not replaced
    # Name of the value in model.onnx that holds the gates [B, S, num_heads]. Readers fetch it as an
    # extra output.
    gates: str
    batch: PositiveSize  # batch size at the example's sizes (product of all batch axes)
    seq_len: PositiveSize | None  # query length at the example's sizes; None where unknown
    # Keys that a token may see, at the example's sizes: all of its window and all pooled ones for
    # MoHAggregatedAttention; None where unknown.
    kv_len: PositiveSize | None
    # Share of (token, head) pairs with a non-zero gate, measured on the recorded vectors, padding
    # left out where it is known.
    active_share: Annotated[float, Field(ge=0, le=1)] | None = None
    # Name of the MoHQueryProjection node that makes the queries; None if they are made by plain
    # operators.
    query_projection: str | None = None
    # Name of the MoHOutputProjection node that reads the heads; or None.
    output_projection: str | None = None
    # `MoHAttention` or `MoHAggregatedAttention`; None if not replaced.
    op: AttentionOp | None = None
    # How the layer is run; None if it was not replaced, or has no mode: then every node of it is
    # of domain `moh`.
    choice: Choice | None = None
    # Sizes at which it is run in another way; the first that the sizes are in decides, and where
    # they are in none, `choice` does.
    ranges: tuple[SizeRange, ...] = ()
    # The dtypes of the router's stages, in a package that `precision` wrote.
    router_types: RouterTypes | None = None
    # Name of the value in model.onnx that holds what the attention computes, gates included, [B, S,
    # num_heads * value size], where it was not replaced; None where it was, since `node` makes it,
    # and where no view of it is of that shape.
    attention: str | None = None
    # Heads that run for no token, whatever the inputs are; known of constant gates.
    closed_heads: tuple[WholeSize, ...] = ()
    # What structure the masks of the original have, which the node takes over, or why they stayed;
    # None where it has no mask.
    mask: str | None = None
