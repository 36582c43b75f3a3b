"""A package in lower precision: its model, its manifest, and the dtypes of its routers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import onnx_ir as ir

from moh_deploy.config.dtypes import dtype_named
from moh_deploy.errors import ConfigError
from moh_deploy.graph import sequences
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.precision_policy import LowType, PrecisionPlan
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage, RouterTypes
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.system.npz import Array


def lowered(package: OnnxPackage, to: str, root: Path) -> OnnxPackage:
    """Lower a float32 package into a scratch directory; nothing is compared with the original.

    Returns:
        A package to open sessions of. It has no files but the model.
    """
    low = low_type(to)
    # What a value can be in half precision depends on how large it gets in recorded runs.
    model = load_ir(package)
    _, layers = lower_model(model, package.manifest.layers, low, largest_values(package))
    root.mkdir()
    save_model(model, package, root)
    manifest = lowered_manifest(package, low, layers)
    return replace(package, root=root, manifest=manifest)


def lower_model(
    model: ir.Model, layers: tuple[LayerInfo, ...], low: LowType, largest: Mapping[str, float]
) -> tuple[PrecisionPlan, tuple[LayerInfo, ...]]:
    """Lower a package's model in place.

    Returns:
        What each operator computes in, and the layers with the dtypes of their routers.
    """
    plan = sequences.lower(model, layers, low, largest)
    return plan, tuple(replace(layer, router_types=router_types(model, layer)) for layer in layers)


def lowered_manifest(package: OnnxPackage, low: LowType, layers: tuple[LayerInfo, ...]) -> Manifest:
    """Return the manifest of a lowered package: what was measured in float32 says nothing of it."""
    # Queries, keys and values are bfloat16 then: products that take nothing else round only what
    # the softmax makes (ADR 74).
    is_bfloat16 = low == "bfloat16"
    return replace(
        package.manifest,
        precision=low,
        compute_type="bfloat16" if is_bfloat16 else package.manifest.compute_type,
        layers=layers,
        proof=None,
        rounding=None,
        runtime=None,
    )


def router_types(model: ir.Model, layer: LayerInfo) -> RouterTypes:
    """Read from a model the dtypes of a layer's router."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    gates = values[layer.gates]
    router = gates.producer()
    assert router is not None
    projections = set()
    for logits in router.inputs:
        # The product that made these logits, perhaps sliced, added to, reshaped or cast.
        node = None if logits is None else logits.producer()
        while node is not None and node.op_type not in ("MatMul", "Gemm"):
            # Follow the data, not a bias or a shape: these are weights.
            data = (v for v in node.inputs if v is not None and not v.is_initializer())
            first = next(data, None)
            node = None if first is None else first.producer()
        if node is not None and node.outputs[0].dtype is not None:
            projections.add(str(node.outputs[0].dtype.numpy()))
    # The first input that has a dtype stands for all: an op takes its floats in one dtype.
    scores = next((v for v in router.inputs if v is not None and v.dtype is not None), gates)
    assert scores.dtype is not None
    assert gates.dtype is not None
    return RouterTypes(
        # Shared and routed heads may have products of their own: one dtype for all of them, or none
        # is said.
        projection=projections.pop() if len(projections) == 1 else None,
        scores=str(scores.dtype.numpy()),
        gates=str(gates.dtype.numpy()),
    )


def low_type(to: str) -> LowType:
    """Return the dtype that a user calls `to`.

    Raises:
        ConfigError: It is missing.
    """
    return cast("LowType", dtype_named(to, get_args(LowType), option="to"))


def check_float32(package: OnnxPackage) -> None:
    """Refuse a package that was lowered.

    Raises:
        ConfigError: It is not in float32.
    """
    if package.manifest.precision != "float32":
        raise ConfigError(
            f"{package.root} is in {package.manifest.precision}, expected a package in float32.",
            hint="Export the model with --dtype float32 and lower that package.",
        )


# Measure how large the values inside a model get: half precision must not overflow.

# Values that are fetched in one run: each is held in memory until the run is over.
_AT_ONCE = 64


def largest_values(package: OnnxPackage) -> dict[str, float]:
    """Run the recorded inputs and return the largest finite absolute number of each float value.

    Args:
        package: Weights count as values; what stands in inner graphs and in function bodies does
            not.

    Raises:
        BackendError: ONNX Runtime failed.
    """
    graph = load_ir(package).graph  # onnx reads no weights from where a name is not text
    largest = {
        name: _largest(value.const_value.numpy())
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT
    }
    names = [value.name for node in graph for value in node.outputs if value.name]
    for vectors in package.vectors:
        for name, array in vectors.inputs.items():
            _note(largest, name, array)
        # A session for each chunk, as outputs are part of a model; it is loaded again for less
        # memory.
        for start in range(0, len(names), _AT_ONCE):
            chunk = tuple(names[start : start + _AT_ONCE])
            runner = open_session(package, Variant(extra_outputs=chunk))
            for name, array in runner.run(vectors.inputs).items():
                _note(largest, name, array)
    return largest


def _note(largest: dict[str, float], name: str, array: Array) -> None:
    if np.issubdtype(array.dtype, np.floating):
        largest[name] = max(largest.get(name, 0.0), _largest(array))


def _largest(array: Array) -> float:
    # Masks hold -inf on purpose, which half precision has too.
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max(initial=0.0))
