"""The contents of a package's `manifest.json`, as types."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moh_deploy.config.dtypes import PRECISIONS, ComputeType, Runtime
from moh_deploy.config.strict_json import Strict
from moh_deploy.package import interface
from moh_deploy.package.interface import LayerInfo

# Types of the manifest for measurements: proof, rounding, times.

# A measured error may be NaN, which JSON can only spell as a string.
_NON_FINITE_ALLOWED = {"extra": "forbid", "ser_json_inf_nan": "strings"}


@dataclass(frozen=True)
class Spread(Strict):
    """The size of differences: their root mean square, and the largest of them."""

    rms: interface.Amount
    largest: interface.Amount


@dataclass(frozen=True)
class LayerRounding(Strict):
    """The distances that rounding moves the values of one layer."""

    scores: Spread | None  # what its router ranks; None where that is not known
    gates: Spread  # of chosen heads
    # Its fingerprint, as a share of the root mean square of the values; `largest` is of a token.
    # None where it is not known.
    attention: Spread | None


@dataclass(frozen=True)
class Rounding(Strict):
    """The distances by which rounding moves the original, measured at the example's sizes.

    It ran with noise of one step of its dtype behind each operator, the gates of the original fed
    to every layer. Of routers that divide by a deviation, scores and gates have the largest
    distance in any recorded run.
    """

    # Of each output, as shares of its root mean square and of its largest value.
    outputs: dict[str, Spread]
    layers: tuple[LayerRounding, ...]  # of each layer, in the manifest's order


def _in_range(number: float, most: float) -> float:
    if not (math.isnan(number) or 0 <= number <= most):
        raise ValueError(f"is {number}, expected 0 to {most}")
    return number


@dataclass(frozen=True)
class Proof(Strict):
    """The proof that a package equals the original, as the export measured it."""

    __pydantic_config__ = _NON_FINITE_ALLOWED

    # NaN stands where a result was none, or where no decision was clear enough to be counted.
    # Largest absolute difference of any output element over all vectors.
    max_abs_error: Annotated[float, AfterValidator(lambda error: _in_range(error, math.inf))]
    # Share of (token, head) decisions that are equal, tokens with a near-tie left out; 1.0 without
    # layers.
    routing_agreement: Annotated[float, AfterValidator(lambda share: _in_range(share, 1))]
    # The dimension sizes of each vector set, such as `({"batch": 2}, {"batch": 3})`.
    sizes: tuple[dict[str, interface.WholeSize], ...]


@dataclass(frozen=True)
class Tuning:
    """The grounds of the layers' choices: measured or given."""

    source: Literal["measured", "given"]  # `measured` on a machine, or `given` by hand
    machine: str  # processor, cores and instruction set of that machine
    runtime: str | None = None  # name and version of the runtime; None if nothing was measured
    # Threads within an operator; None for the runtime's own choice.
    threads: interface.PositiveSize | None = None
    clock: str | None = None  # `CPU` or `wall`: what the times are of; None if nothing was measured
    # The dimension sizes that it was measured at, one a set of inputs. Nothing is known of others.
    sizes: tuple[dict[str, interface.WholeSize], ...] = ()
    weights: tuple[interface.Amount, ...] = ()  # how often each set of inputs counts
    # For each layer of the manifest and each set of inputs, choice to milliseconds; nothing for a
    # layer without a choice.
    layer_ms: tuple[tuple[dict[str, interface.Amount], ...], ...] = ()
    # For each set of inputs, `dense` (every layer), `chosen`, and, where layers have ranges,
    # `one_choice` (without them) to milliseconds of the whole model; nothing where all layers were
    # chosen to be dense before that was asked.
    model_ms: tuple[dict[str, interface.Amount], ...] = ()
    # Paths of layers where measuring could not tell which choice is the fastest.
    undecided: tuple[str, ...] = ()
    # The conditions under which the package was the fastest of several precisions and runtimes;
    # nothing if there were none.
    within: tuple[str, ...] = ()


FORMAT_VERSION = 1


@dataclass(frozen=True)
class KeptOperators(Strict):
    """Operators outside of MoH layers that stay as the model wrote them, because those that were to
    take over gave another result when both were run at export.
    """

    path: str  # module path of the last of them; `model` for the model itself
    operators: tuple[str, ...]  # names of what stays, in execution order: `conv2d`, `gelu`
    inserted: tuple[str, ...]  # names of what was to take over: `MoHTokenConv`
    # Largest absolute difference over the recorded runs; None where there is no number, because
    # shapes differ or a result is not finite.
    max_abs_error: float | None
    reason: str  # how the results differ, in words


@dataclass(frozen=True)
class NearMiss(Strict):
    """Attention that meets what looks like gates of its heads, and was not read as an MoH layer."""

    paths: tuple[str, ...]  # module paths, in execution order; `model` for the model itself
    reason: str  # what was followed, and the operator at which it was lost
    # The line of the original model's code with that operator, `attention.py:88`; None where the
    # trace does not tell.
    place: str | None
    gates: str | None  # the line with the product with the gates, or None


OtherGates = Literal["channels", "heads"]
"""What gates multiply that open or close no head: channels, or heads by constants other than 0."""


@dataclass(frozen=True)
class OtherRouter(Strict):
    """A router that weighs no attention: that of a mixture of experts, say."""

    paths: tuple[str, ...]  # module paths, in execution order; `model` for the model itself
    router: str  # what ranks or weighs how many candidates: `topk of 2 among 8`
    # The line of the original model's code with that operator, `experts.py:31`; None where the
    # trace does not tell.
    place: str | None
    weighs: str  # the operator, or input, that makes what its gates are multiplied with
    gates: str | None  # the line with that product, or None


@dataclass(frozen=True)
class Float32Node(Strict):
    """An operator of a package in lower precision that computes in float32 because `bisect` found
    that it has to.
    """

    name: str  # of the node in model.onnx; `-> VALUE` for one without, by its output
    reason: str  # why, in words


@dataclass(frozen=True)
class Made(Strict):
    """A note that a package is another model than the original, made to be compared with it.

    What it has recorded is of the package that it was made from, changed in the same way by feeding
    gates, or by its function bodies.
    """

    how: str  # what was changed, in words: `every token has the same heads, 12 kept by load`
    model_sha256: str  # digest of model.onnx of the package that it was made from
    # For each layer the heads that are left, by their numbers in that package; empty where no layer
    # lost any.
    kept: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Manifest(Strict):
    """The content of `manifest.json`."""

    inputs: tuple[interface.TensorInfo, ...]  # the model's inputs, in the order of model.onnx
    outputs: tuple[interface.TensorInfo, ...]  # the model's outputs, in the order of model.onnx
    dims: dict[str, interface.PositiveSize]  # dynamic dimension name to example size
    layers: tuple[LayerInfo, ...]  # every MoH layer, in the order it runs
    ops: dict[str, int]  # custom op name (`moh::MoHAttention`) to op version
    opset: int  # version of the standard ONNX operator set
    # Multiply-adds times two of the original model at the example's sizes, dense; None if unknown.
    total_flops: interface.WholeSize | None
    # The shortest floating-point dtype of weights and outputs, or that which products have weights
    # of: picks the tolerance.
    precision: Annotated[str, Field(pattern=f"^({'|'.join(PRECISIONS)})$")]
    checkpoint_sha256: str | None  # digest of the checkpoint the package was made from, or None
    # Versions: moh-deploy, torch, onnx, python; onnxruntime where the original was an ONNX file,
    # which it recorded.
    made_with: dict[str, str]
    proof: Proof | None = None  # what the export measured; None if nothing was compared
    # Dynamic dimension to the smallest and largest size that the trace is good for; None for no
    # largest. Dimensions that take every size are left out.
    dim_ranges: dict[str, tuple[interface.WholeSize, interface.WholeSize | None]] = field(
        default_factory=dict
    )
    dim_sums: tuple[interface.DimSum, ...] = ()  # dimensions that are limited together
    # What kernels may round the operands of attention's matrix products to; float32 allows no
    # rounding. Sums are in float32 in any case.
    compute_type: ComputeType = "float32"
    # What the choices of the layers rest on; None if they rest on a prediction, or were not made.
    tuning: Tuning | None = None
    # Operators outside of the layers that stay because their replacement differed.
    kept: tuple[KeptOperators, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()  # what looks like MoH layers and was not read as such
    other_routers: tuple[OtherRouter, ...] = ()  # routers that weigh no attention
    ungated: int = 0  # how many attentions have no gates
    # How many attentions have gates that open or close no head, by what these multiply.
    other_gates: dict[OtherGates, int] = field(default_factory=dict)
    float32_nodes: tuple[Float32Node, ...] = ()  # operators that `bisect` put into float32
    # The least and the largest number that each product in int8 was given at calibration, by the
    # value that it reads: its static scale is made of them. Empty where scales are dynamic.
    activation_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    # How far rounding moves the original; None if it was not measured.
    rounding: Rounding | None = None
    # How the original takes the inputs; None where they are its positional arguments.
    call: interface.Call | None = None
    # What runs the package where nothing else is asked for, because it was the fastest in that;
    # None for ONNX Runtime.
    runtime: Runtime | None = None
    # The input that says which tokens are valid, [batch, tokens] of 0 and 1, or [batch, ...,
    # tokens] that is added to scores; `not` before its name: it is 1 for padding. The original's
    # results for padding are recorded and not compared. None: all tokens are valid.
    valid_tokens: str | None = None
    # The dimension of the tokens that are the last ones of that input's: those of a call, behind a
    # cache. None where its tokens are those of a call.
    new_tokens: str | None = None
    # What was changed in a package that is another model than the original; None for a package that
    # equals it.
    made: Made | None = None
    # Of a language model that takes tokens and a cache; None of others.
    text_generation: interface.TextGeneration | None = None
    # Caches that are written in place; None without caches, or if they grow.
    caches: interface.CachesInPlace | None = None
    # File name to sha256, for each file of the package but the manifest.
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION  # version of the package format

    @property
    def from_onnx(self) -> bool:
        """Tell whether the original is an ONNX file, which ONNX Runtime recorded."""
        return "onnxruntime" in self.made_with

    def largest_size(self, name: str) -> int | None:
        """Return the largest size of a dimension beside the example's sizes of the others; None if
        there is no limit.
        """
        sums = [dim_sum for dim_sum in self.dim_sums if name in dim_sum.dims]
        limits = [
            self.dim_ranges.get(name, (0, None))[1],
            *(sum_.most - sum(self.dims[dim] for dim in sum_.dims if dim != name) for sum_ in sums),
        ]
        return min((limit for limit in limits if limit is not None), default=None)
