"""The contents of a package's `manifest.json`, as types."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moh_deploy.config.dtypes import PRECISIONS, ComputeType, Runtime
from moh_deploy.config.strict_json import Strict
from moh_deploy.package import interface
from moh_deploy.package.layer_info import LayerInfo

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

    # NaN stands where a result was none, or where no decision was clear enough to be counted.
    max_abs_error: Annotated[float, AfterValidator(lambda error: _in_range(error, math.inf))]
    routing_agreement: Annotated[float, AfterValidator(lambda share: _in_range(share, 1))]
    sizes: tuple[dict[str, interface.WholeSize], ...]


def _in_range(number: float, most: float) -> float:
    if not (math.isnan(number) or 0 <= number <= most):
        raise ValueError(f"is {number}, expected 0 to {most}")
    return number


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
    threads: interface.PositiveSize | None = None
    clock: str | None = None
    sizes: tuple[dict[str, interface.WholeSize], ...] = ()
    weights: tuple[interface.Amount, ...] = ()
    layer_ms: tuple[tuple[dict[str, interface.Amount], ...], ...] = ()
    model_ms: tuple[dict[str, interface.Amount], ...] = ()
    within: tuple[str, ...] = ()


FORMAT_VERSION = 1


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
        precision: The shortest floating-point dtype of weights and outputs, or that which products
            have weights of: picks the tolerance.
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
            [batch, ..., tokens] that is added to scores; `not` before its name: it is 1 for
            padding. The original's results for padding are recorded and not compared. None: all
            tokens are valid.
        made: What was changed in a package that is another model than the original; None for a
            package that equals it.
        text_generation: Of a language model that takes tokens and a cache; None of others.
        caches: Caches that are written in place; None where there are none, or they grow.
        files: File name to sha256, for each file of the package but the manifest.
        format_version: Version of the package format.
    """

    inputs: tuple[interface.TensorInfo, ...]
    outputs: tuple[interface.TensorInfo, ...]
    dims: dict[str, interface.PositiveSize]
    layers: tuple[LayerInfo, ...]
    ops: dict[str, int]
    opset: int
    total_flops: interface.WholeSize | None
    precision: Annotated[str, Field(pattern=f"^({'|'.join(PRECISIONS)})$")]
    checkpoint_sha256: str | None
    made_with: dict[str, str]
    proof: Proof | None = None
    dim_ranges: dict[str, tuple[interface.WholeSize, interface.WholeSize | None]] = field(
        default_factory=dict
    )
    dim_sums: tuple[interface.DimSum, ...] = ()
    compute_type: ComputeType = "float32"
    tuning: Tuning | None = None
    kept: tuple[KeptOperators, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    other_routers: tuple[OtherRouter, ...] = ()
    ungated: int = 0
    float32_nodes: tuple[Float32Node, ...] = ()
    rounding: Rounding | None = None
    call: interface.Call | None = None
    runtime: Runtime | None = None
    valid_tokens: str | None = None
    made: Made | None = None
    text_generation: interface.TextGeneration | None = None
    caches: interface.CachesInPlace | None = None
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def from_onnx(self) -> bool:
        """Whether the original is an ONNX file, which ONNX Runtime recorded."""
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
