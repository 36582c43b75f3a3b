"""Run one node of a model by itself: what an operator computes that nothing here knows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.package import TensorInfo
from moh_deploy.runtime.onnxruntime.session import create_session, session_options
from moh_deploy.runtime.onnxruntime.values import from_ort, tensor_info, to_ort
from moh_deploy.system.npz import Array

if TYPE_CHECKING:
    import onnxruntime as ort


def run_node(model: bytes, inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of a node.

    Args:
        model: A ModelProto of that node alone, whose inputs have no types yet.
        inputs: In its order.

    Raises:
        BackendError: ONNX Runtime has no such operator, or it fails.
    """
    specs = tuple(TensorInfo("", array.dtype.name, array.shape) for array in inputs)
    session = _session(model, specs)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: to_ort(array) for name, array in zip(names, inputs, strict=True)}
    return [from_ort(value) for value in session.run_with_ort_values(None, feeds)]


def node_output_types(model: bytes, inputs: Sequence[TensorInfo]) -> list[TensorInfo]:
    """Return what ONNX Runtime says of a node's outputs; a size that it cannot tell has a name
    that no input's size has.

    Raises:
        BackendError: It has no such operator, or the inputs do not fit it.
    """
    return [tensor_info(value) for value in _session(model, tuple(inputs)).get_outputs()]


@lru_cache(maxsize=32)
def _session(model: bytes, inputs: tuple[TensorInfo, ...]) -> ort.InferenceSession:
    proto = onnx.ModelProto.FromString(model)
    for declared, spec in zip(proto.graph.input, inputs, strict=True):
        dtype = helper.np_dtype_to_tensor_dtype(numpy_dtype(spec.dtype))
        declared.type.CopyFrom(helper.make_tensor_type_proto(dtype, spec.shape))
    return create_session(proto.SerializeToString(), session_options(Path(), 1, optimize=False))
