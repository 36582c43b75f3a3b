"""The contents of a package's `manifest.json`, as types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import JsonValue

from moh_deploy.config.nested_inputs import ConstantValue
from moh_deploy.config.runtimes import Runtime
from moh_deploy.ops.op_names import AttentionOp

FORMAT_VERSION = 1

ComputeType = Literal["float32", "bfloat16"]

Choice = Literal["dense", "sparse", "projected"]
"""How a replaced layer is run: every head by its function bodies; the chosen heads by a kernel; the
chosen heads with their projections by kernels."""

# A measured error may be NaN, which JSON can only spell as a string.
_NON_FINITE_ALLOWED = {"extra": "forbid", "ser_json_inf_nan": "strings"}
_STRICT = {"extra": "forbid", "strict": True, "ser_json_inf_nan": "strings"}


class Strict:
    """Base of what pydantic decodes from JSON: no key too many, no number hidden in a string."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT


@dataclass(frozen=True)
class TensorInfo(Strict):
    """Name, dtype (`float32`, `bfloat16`, `int64`, `bool`, ...) and shape of an input or output.

    A shape entry is an int (fixed) or a dimension expression: `"batch"`, `"past + 1"`.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class CallArgument(Strict):
    """A value that the original is called with: an input, a constant, or a container of such.

    Attributes:
        input: Name of the input; None for anything else.
        value: The constant, of what is neither input nor container.
        container: `list`, `tuple`, `dict`, or the full name of a class; None for anything else.
        context: The keys of a dict; the fields of a dataclass; of another class what its
            registration with PyTorch's pytrees keeps beside the items.
        items: The values in the container, in its order.
    """

    input: str | None = None
    value: ConstantValue = None
    container: str | None = None
    context: JsonValue = None
    items: tuple[CallArgument, ...] = ()

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
        return tuple(name for one in (*self.args, *self.kwargs.values()) for name in one.inputs)

    @property
    def is_plain(self) -> bool:
        """Whether the inputs themselves are the positional arguments."""
        return not self.kwargs and all(one.input is not None for one in self.args)


@dataclass(frozen=True)
class SizeRange(Strict):
    """Sizes of the model's inputs at which a layer has a choice of its own.

    Attributes:
        size: What is compared: a dynamic dimension, or a product of some: `seq`, `batch*seq`.
        at_most: The largest value that is meant.
        choice: How the layer is run up to that.
    """

    size: str
    at_most: int
    choice: Choice


@dataclass(frozen=True)
class DimSum(Strict):
    """Dimensions that are limited together, as a cache and new tokens are by a table of positions.

    Attributes:
        dims: Their names.
        most: The largest sum that the trace is good for.
    """

    dims: tuple[str, ...]
    most: int

    def __str__(self) -> str:
        return f"{' + '.join(self.dims)} <= {self.most}"


@dataclass(frozen=True)
class CacheBuffer(Strict):
    """A cache of keys or values that is a buffer with room: an input, and an output that may be the
    same memory.

    Attributes:
        past: Name of the input.
        present: Name of the output: the input with this call's tokens behind those that it had.
        axis: The axis of tokens.
    """

    past: str
    present: str
    axis: int


@dataclass(frozen=True)
class CachesInPlace(Strict):
    """The caches of a decoder that writes new keys and values where they belong.

    Attributes:
        buffers: Every cache. All have the same number of places.
        past_length: How many places of each sequence were filled before the call: the name of an
            input, or what follows from sizes: `total - seq`, `total - 1`, `past`.
        new_length: How many tokens a call adds: a dimension, or a number.
        least_past: The fewest filled places that the trace is good for.
        most_tokens: The most tokens, filled before and new, likewise; None: as many as there are
            places.
    """

    buffers: tuple[CacheBuffer, ...]
    past_length: str
    new_length: str | int
    least_past: int = 0
    most_tokens: int | None = None


@dataclass(frozen=True)
class RouterTypes(Strict):
    """The dtypes of the stages of a layer's router, in a package of lower precision.

    Attributes:
        projection: Of the products that make the logits; None where the graph does not tell.
        scores: Of logits as the router reads them, and of softmax and the choice of heads.
        gates: Of the gates as the router returns them.
    """

    projection: str | None
    scores: str
    gates: str


@dataclass(frozen=True)
class LayerInfo(Strict):
    """One MoH layer of the exported model.

    Attributes:
        path: Module path in the original model, such as `blocks.3.attn`; `model` for the model
            itself; with `#2` for the second layer of one path: no two layers are called the same.
        num_heads: Query heads of the attention, shared ones included.
        num_kv_heads: Key and value heads; None where the attention is of a form that no op covers.
        head_dim: Size of one head; None under the same condition.
        num_shared_heads: Heads that run for every token; None where the router's form does not
            tell.
        top_k: Routed heads that a token chooses; 0 where nothing is selected; None where the
            router's form does not tell.
        router: Name of the form of its router, one of `moh_deploy.ops.routers`.
        router_replaced: The router became a MoHRouter node (else it stays as plain ops in front).
        replaced: The attention became a node of `op`.
        reason: Why it (or its router) was not replaced; None if both were, and for constant gates,
            which need no router.
        node: Name of the node of `op` in model.onnx; None if not replaced.
        gates: Name of the value in model.onnx that holds the gates [B, S, num_heads]. Readers fetch
            it as an extra output.
        attention: Name of the value in model.onnx that holds what the attention computes, gates
            included, [B, S, num_heads * value size], where it was not replaced; None where it was,
            since `node` makes it, and where no view of it is of that shape.
        batch: Batch size at the example's sizes (product of all batch axes).
        seq_len: Query length at the example's sizes; None where unknown.
        kv_len: Keys that a token may see, at the example's sizes: all of its window and all pooled
            ones for MoHAggregatedAttention; None where unknown.
        active_share: Share of (token, head) pairs with a non-zero gate, measured on the recorded
            vectors, padding left out where it is known.
        query_projection: Name of the MoHQueryProjection node that makes the queries; None if they
            are made by plain operators.
        output_projection: Name of the MoHOutputProjection node that reads the heads; None likewise.
        op: `MoHAttention` or `MoHAggregatedAttention`; None if not replaced.
        choice: How the layer is run; None if it was not replaced, or nobody chose: then every node
            of it is of domain `moh`.
        ranges: Sizes at which it is run in another way; the first that the sizes are in decides,
            and where they are in none, `choice` does.
        closed_heads: Heads that run for no token, whatever the inputs are; known of constant gates.
        router_types: The dtypes of the router's stages, in a package that `precision` wrote.
    """

    path: str
    num_heads: int
    num_kv_heads: int | None
    head_dim: int | None
    num_shared_heads: int | None
    top_k: int | None
    router: str
    router_replaced: bool
    replaced: bool
    reason: str | None
    node: str | None
    gates: str
    batch: int
    seq_len: int | None
    kv_len: int | None
    active_share: float | None = None
    query_projection: str | None = None
    output_projection: str | None = None
    op: AttentionOp | None = None
    choice: Choice | None = None
    ranges: tuple[SizeRange, ...] = ()
    router_types: RouterTypes | None = None
    attention: str | None = None
    closed_heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeptOperators(Strict):
    """Operators outside of MoH layers that stay as the model wrote them, because those that were to
    take over gave another result when both were run at export.

    Attributes:
        path: Module path of the last of them; `model` for the model itself.
        operators: Names of what stays, in execution order: `conv2d`, `gelu`.
        inserted: Names of what was to take over: `MoHTokenConv`.
        max_abs_error: Largest absolute difference over the recorded runs; None where there is no
            number, because shapes differ or a result is not finite.
        reason: How the results differ, in words.
    """

    path: str
    operators: tuple[str, ...]
    inserted: tuple[str, ...]
    max_abs_error: float | None
    reason: str


@dataclass(frozen=True)
class NearMiss(Strict):
    """Attention that meets what looks like gates of its heads, and was not read as an MoH layer.

    Attributes:
        paths: Module paths, in execution order; `model` for the model itself.
        reason: What was followed, and the operator at which it was lost.
        place: The line of the original model's code with that operator, `attention.py:88`; None
            where the trace does not tell.
        gates: The line with the product with the gates, likewise.
    """

    paths: tuple[str, ...]
    reason: str
    place: str | None
    gates: str | None


@dataclass(frozen=True)
class OtherRouter(Strict):
    """A router that weighs no attention: that of a mixture of experts, say.

    Attributes:
        paths: Module paths, in execution order; `model` for the model itself.
        router: What ranks or weighs how many candidates: `topk of 2 among 8`.
        place: The line of the original model's code with that operator, `experts.py:31`; None
            where the trace does not tell.
        weighs: The operator, or input, that makes what its gates are multiplied with.
        gates: The line with that product, likewise.
    """

    paths: tuple[str, ...]
    router: str
    place: str | None
    weighs: str
    gates: str | None


@dataclass(frozen=True)
class Float32Node(Strict):
    """An operator of a package in lower precision that computes in float32 because `bisect` found
    that it has to.

    Attributes:
        name: Of the node in model.onnx; `-> VALUE` for one without, by its output.
        reason: Why, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Made(Strict):
    """A note that a package is another model than the original, made to be compared with it.

    What it has recorded is of the package that it was made from, changed in the same way by feeding
    gates, or by its function bodies.

    Attributes:
        how: What was changed, in words: `every token has the same heads, 12 kept by load`.
        model_sha256: Digest of model.onnx of the package that it was made from.
        kept: For each layer the heads that are left, by their numbers in that package; empty where
            no layer lost any.
    """

    how: str
    model_sha256: str
    kept: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Spread(Strict):
    """The size of differences: their root mean square, and the largest of them."""

    rms: float
    largest: float


@dataclass(frozen=True)
class LayerRounding(Strict):
    """The distances that rounding moves the values of one layer.

    Attributes:
        scores: What its router ranks; None where that is not known.
        gates: Of chosen heads.
        attention: Its fingerprint, as a share of the root mean square of the values; `largest` is
            of a token. None where it is not known.
    """

    scores: Spread | None
    gates: Spread
    attention: Spread | None


@dataclass(frozen=True)
class Rounding(Strict):
    """The distances by which rounding moves the original, measured at the example's sizes.

    It ran with noise of one step of its dtype behind each operator, the gates of the original fed
    to every layer.

    Attributes:
        outputs: Of each output, as shares of its root mean square and of its largest value.
        layers: Of each layer, in the manifest's order.
    """

    outputs: dict[str, Spread]
    layers: tuple[LayerRounding, ...]


@dataclass(frozen=True)
class Proof(Strict):
    """The proof that a package equals the original, as the export measured it.

    Attributes:
        max_abs_error: Largest absolute difference of any output element over all vectors.
        routing_agreement: Share of (token, head) decisions that are equal, tokens with a near-tie
            left out; 1.0 without layers.
        sizes: The dimension sizes of each vector set, such as `({"batch": 2}, {"batch": 3})`.
    """

    __pydantic_config__ = _NON_FINITE_ALLOWED

    max_abs_error: float
    routing_agreement: float
    sizes: tuple[dict[str, int], ...]


@dataclass(frozen=True)
class Tuning:
    """The grounds of the layers' choices: measurements, or what somebody gave.

    Attributes:
        source: `measured` on a machine, or `given` by somebody.
        machine: Processor, cores and instruction set of that machine.
        runtime: Name and version of the runtime; None if nothing was measured.
        threads: Threads within an operator; None for the runtime's own choice.
        clock: `CPU` or `wall`: what the times are of; None if nothing was measured.
        sizes: The dimension sizes that it was measured at, one a set of inputs. Nothing is known of
            others.
        weights: How often each set of inputs counts.
        layer_ms: For each layer of the manifest and each set of inputs, choice to milliseconds;
            nothing for a layer without a choice.
        model_ms: For each set of inputs, `dense` (every layer), `chosen`, and, where layers have
            ranges, `one_choice` (without them) to milliseconds of the whole model; nothing where
            all layers were chosen to be dense before that was asked.
        within: The conditions under which the package was the fastest of several precisions and
            runtimes; nothing if there were none.
    """

    source: Literal["measured", "given"]
    machine: str
    runtime: str | None = None
    threads: int | None = None
    clock: str | None = None
    sizes: tuple[dict[str, int], ...] = ()
    weights: tuple[float, ...] = ()
    layer_ms: tuple[tuple[dict[str, float], ...], ...] = ()
    model_ms: tuple[dict[str, float], ...] = ()
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextGeneration(Strict):
    """Facts of a language model that generating text with it needs.

    Attributes:
        vocab_size: How many logits a token has.
        context_length: The most tokens of prompt and answer together; None where nobody says.
        eos_token_ids: Tokens that end a text.
        bos_token_id: The token that begins one; None where there is none.
        pad_token_id: What stands for padding, whose value does not matter; None likewise.
        model_type: What its config calls the architecture: `llama`; None without a config.
    """

    vocab_size: int
    context_length: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    model_type: str | None = None


@dataclass(frozen=True)
class Manifest(Strict):
    """`manifest.json`.

    Attributes:
        inputs: The model's inputs, in the order of model.onnx.
        outputs: The model's outputs, in the order of model.onnx.
        dims: Dynamic dimension name to example size.
        layers: Every MoH layer, in the order it runs.
        ops: Custom op name (`moh::MoHAttention`) to op version.
        opset: Version of the standard ONNX operator set.
        total_flops: Multiply-adds times two of the original model at the example's sizes, dense;
            None if unknown.
        precision: The shortest floating-point dtype of weights and outputs, or `int8` where weights
            and operands of products are, `int4` where weights are: picks the tolerance.
        checkpoint_sha256: Digest of the checkpoint the package was made from, or None.
        made_with: Versions: moh-deploy, torch, onnx, python; onnxruntime where the original was an
            ONNX file, which it recorded.
        proof: What the export measured; None if nothing was compared.
        dim_ranges: Dynamic dimension to the smallest and largest size that the trace is good for;
            None for no largest. Dimensions that take every size are left out.
        dim_sums: Dimensions that are limited together.
        compute_type: What kernels may round the operands of attention's matrix products to;
            float32 allows no rounding. Sums are in float32 in any case.
        tuning: What the choices of the layers rest on; None if they rest on a prediction, or nobody
            chose.
        kept: Operators outside of the layers that stay because their replacement differed.
        near_misses: What looks like MoH layers and was not read as such.
        other_routers: Routers that weigh no attention.
        ungated: How many attentions have no gates.
        float32_nodes: Operators that `bisect` put into float32.
        rounding: How far rounding moves the original; None where nobody measured it.
        call: How the original takes the inputs; None where they are its positional arguments.
        runtime: What runs the package where nothing else is asked for, because it was the fastest
            in that; None for ONNX Runtime.
        valid_tokens: The input that says which tokens are valid, [batch, tokens] of 0 and 1, or
            [batch, ..., tokens] that is added to scores: what
            the original computes for padding is recorded and not compared. None: all are valid.
        made: What was changed in a package that is another model than the original; None for a
            package that equals it.
        text_generation: Of a language model that takes tokens and a cache; None of others.
        caches: Caches that are written in place; None where there are none, or they grow.
        files: File name to sha256, for each file of the package but the manifest.
        format_version: Version of the package format.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    dims: dict[str, int]
    layers: tuple[LayerInfo, ...]
    ops: dict[str, int]
    opset: int
    total_flops: int | None
    precision: str
    checkpoint_sha256: str | None
    made_with: dict[str, str]
    proof: Proof | None = None
    dim_ranges: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    dim_sums: tuple[DimSum, ...] = ()
    compute_type: ComputeType = "float32"
    tuning: Tuning | None = None
    kept: tuple[KeptOperators, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    other_routers: tuple[OtherRouter, ...] = ()
    ungated: int = 0
    float32_nodes: tuple[Float32Node, ...] = ()
    rounding: Rounding | None = None
    call: Call | None = None
    runtime: Runtime | None = None
    valid_tokens: str | None = None
    made: Made | None = None
    text_generation: TextGeneration | None = None
    caches: CachesInPlace | None = None
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def largest_size(self, name: str) -> int | None:
        """Return the largest size of a dimension beside the example's sizes of the others; None if
        there is no limit.
        """
        sums = [one for one in self.dim_sums if name in one.dims]
        limits = [
            self.dim_ranges.get(name, (0, None))[1],
            *(one.most - sum(self.dims[dim] for dim in one.dims if dim != name) for one in sums),
        ]
        return min((limit for limit in limits if limit is not None), default=None)
