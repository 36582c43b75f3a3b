"""Checks beside outputs, layers and metrics: agreement of classes and heads, stored weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moh_deploy.config.dtypes import FEW_BITS
from moh_deploy.errors import ConfigError
from moh_deploy.graph.integer_policy import PRODUCTS, PROJECTIONS
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.static_scales import is_quantized
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.quantized_package import quantized
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.metric_parity import MetricVerdict
from moh_deploy.validate.compare.policy import FlipsCondition
from moh_deploy.validate.reference.differences import abs_error, structural_mismatch, worst_index


@dataclass(frozen=True)
class Check:
    """One more thing that was judged."""

    name: str  # `stored weights`, or the condition as it was written
    measured: str  # A sentence on what was found
    verdict: MetricVerdict  # Only `passed` is a pass
    asked: bool = False  # It is a condition of the user's

    @property
    def reason(self) -> str | None:
        """Why it did not pass; None if it did."""
        return None if self.verdict == "passed" else f"{self.name}: {self.measured}"


@dataclass(frozen=True)
class Top1Agreement:
    """Count of an output's rows with the reference's top-1 class."""

    same: int  # rows with the same class as in the reference
    of: int  # all rows that were compared

    def __add__(self, other: Top1Agreement) -> Top1Agreement:
        return Top1Agreement(self.same + other.same, self.of + other.of)


@dataclass(frozen=True)
class Flips:
    """Count of tokens that selected other heads than in the reference."""

    tokens: int  # flipped tokens, each counted once for every layer in which it flipped
    of: int  # all compared tokens, each counted once for every layer


def check_flips(flips: Flips | None, conditions: Sequence[FlipsCondition]) -> tuple[Check, ...]:
    """Judge how many tokens chose other heads; None where gates were not compared."""

    def check(condition: FlipsCondition) -> Check:
        name = condition.text.strip()
        if flips is None:
            why = "routing was not compared, so flips are not known."
            return Check(name, why, "cannot tell", asked=True)
        found = f"{flips.tokens} of {flips.of} tokens chose other heads."
        is_within = flips.tokens <= condition.allowed(flips.of)
        return Check(name, found, "passed" if is_within else "failed", asked=True)

    return tuple(map(check, conditions))


def holds_classes(output: TensorInfo) -> bool:
    """Tell whether an output looks like logits of classes or tokens: [N, C], [N, S, C], C fixed."""
    classes = output.shape[-1] if len(output.shape) in (2, 3) else None
    return "float" in output.dtype and isinstance(classes, int) and classes > 1


def top_1_agreement(got: Array, reference: Array) -> Top1Agreement:
    """Count the rows of two arrays [..., C] that have their largest number at the same place."""
    same = got.argmax(axis=-1) == reference.argmax(axis=-1)
    return Top1Agreement(int(np.count_nonzero(same)), int(same.size))


# Compare the stored weights of a package in few bits with those of its float32 package.
#
# The float32 package is rounded anew, by the same quantiser: what is stored has to be the same. How
# far outputs may be off cannot tell a scale that is wrong by a fifth from honest rounding.

_NAME = "stored weights"


def check_stored_weights(package: OnnxPackage, float32: OnnxPackage) -> Check | None:
    """Compare all that a package in few bits stores with what rounding a package makes.

    Returns:
        None where the package is in another precision, or the other one not in float32.
    """
    to = package.manifest.precision
    if to not in FEW_BITS or float32.manifest.precision != "float32":
        return None
    model = load_ir(package)
    stored = _stored_weights(model)
    # What was kept in float32 by name has its product still.
    kept = [
        str(node.name)
        for node in model.graph
        if node.op_type in (*PRODUCTS, *PROJECTIONS) and not is_quantized(node)
    ]
    try:
        ranges = package.manifest.activation_ranges
        made = quantized(float32, to=to, float32=kept, ranges=ranges).model
    except ConfigError as error:
        return Check(_NAME, f"{float32.root} is another model: {error.message}", "failed")
    expected = _stored_weights(made)
    source = f"those that rounding {float32.root} to {to} makes"
    for name in (*stored, *expected):
        fault = _fault(name, stored.get(name), expected.get(name))
        if fault is not None:
            return Check(_NAME, f"{fault} They are not {source}.", "failed")
    return Check(_NAME, f"all {len(stored)} tensors are {source}.", "passed")


def _stored_weights(model: ir.Model) -> Mapping[str, ir.TensorProtocol]:
    """Return all that a model stores, by name, without what only switches by size need."""
    without_switches(model)
    values = model.graph.initializers.items()
    return {name: value.const_value for name, value in values if value.const_value is not None}


def _fault(
    name: str, stored: ir.TensorProtocol | None, expected: ir.TensorProtocol | None
) -> str | None:
    """Return how a stored tensor differs; None if it does not."""
    if stored is None or expected is None:
        return f"'{name}' is stored on one side alone."
    got, reference = stored.numpy(), expected.numpy()
    mismatch = structural_mismatch(f"'{name}'", got, reference)
    if mismatch is not None:
        return mismatch
    error = abs_error(got, reference)
    # Another version of the quantiser may divide in another order: one unit in the last place.
    with np.errstate(over="ignore"):  # behind the largest float comes infinity
        limit = np.spacing(np.abs(reference)) if reference.dtype.kind == "f" else 0
    wrong = ~(error <= limit)
    if not wrong.any():
        return None
    at = worst_index(np.where(wrong, error, 0.0))
    return (
        f"{int(wrong.sum())} of {wrong.size} numbers of '{name}' differ, at {list(at)} it is"
        f" {got[at]:.6g}, expected {reference[at]:.6g}."
    )
