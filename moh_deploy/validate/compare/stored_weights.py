"""Compare the stored weights of a package in int8 or int4 with those of its float32 package.

The float32 package is rounded anew, by the same quantiser: what is stored has to be the same. How
far outputs may be off cannot tell a scale that is wrong by a fifth from honest rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, get_args

import numpy as np
import onnx_ir as ir

from moh_deploy.config.dtypes import IntegerPrecision
from moh_deploy.errors import ConfigError
from moh_deploy.graph.int4_policy import PROJECTIONS
from moh_deploy.graph.int8_policy import PRODUCTS
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.quantized_package import quantized
from moh_deploy.validate.compare.checks import Check
from moh_deploy.validate.reference.differences import abs_error, structural_mismatch, worst_index

_NAME = "stored weights"


def check_stored_weights(package: OnnxPackage, float32: OnnxPackage) -> Check | None:
    """Compare all that an int8 or int4 package stores with what rounding a package makes.

    Returns:
        None where the package is in another precision, or the other one not in float32.
    """
    to = package.manifest.precision
    if to not in get_args(IntegerPrecision) or float32.manifest.precision != "float32":
        return None
    model = load_ir(package)
    stored = _stored(model)
    # What was kept in float32 by name has its product still.
    kept = [str(node.name) for node in model.graph if node.op_type in (*PRODUCTS, *PROJECTIONS)]
    try:
        made = quantized(float32, to=cast("IntegerPrecision", to), float32=kept).model
    except ConfigError as error:
        return Check(_NAME, f"{float32.root} is another model: {error.message}", "failed")
    expected = _stored(made)
    source = f"those that rounding {float32.root} to {to} makes"
    for name in (*stored, *expected):
        fault = _fault(name, stored.get(name), expected.get(name))
        if fault is not None:
            return Check(_NAME, f"{fault} They are not {source}.", "failed")
    return Check(_NAME, f"all {len(stored)} tensors are {source}.", "passed")


def _stored(model: ir.Model) -> Mapping[str, ir.TensorProtocol]:
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
