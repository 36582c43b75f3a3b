"""Measure how large the values inside a model get: half precision must not overflow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.load_model import load_ir
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.system.npz import Array

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
