"""Everything that claims to compute the ops: a new one joins by a line in IMPLEMENTATIONS."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.single_node import single_node_model
from tests.ops import independent


@dataclass(frozen=True)
class Implementation:
    name: str
    run: Callable[[Case], list[np.ndarray]]

    def __str__(self) -> str:
        return self.name


def case_model(case: Case, *, opset: int = 18, function: onnx.FunctionProto | None = None):
    return single_node_model(
        case.op, case.input_types(), case.attributes, opset=opset, function=function
    )


def named_inputs(case: Case) -> dict[str, np.ndarray]:
    names = (given.name for given in OPS[case.op].inputs)
    pairs = zip(names, case.inputs(), strict=False)
    return {name: array for name, array in pairs if array is not None}


def run_onnx_reference(case: Case, model: onnx.ModelProto | None = None) -> list[np.ndarray]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # It computes on NaN and Inf as it finds them.
        return ReferenceEvaluator(model or case_model(case)).run(None, named_inputs(case))


def run_onnxruntime(
    case: Case, model: onnx.ModelProto | None = None, *, optimised: bool = True
) -> list[np.ndarray]:
    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        (model or case_model(case)).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    arrays = named_inputs(case)  # An OrtValue does not own the array that it was made from.
    values = {name: _to_ort_value(array) for name, array in arrays.items()}
    return [_from_ort_value(value) for value in session.run_with_ort_values(None, values)]


def _to_ort_value(array: np.ndarray) -> ort.OrtValue:
    if array.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), onnx.TensorProto.BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_ort_value(value: ort.OrtValue) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())
    buffer = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
    return np.frombuffer(buffer, dtype=np.uint16).copy().view(ml_dtypes.bfloat16).reshape(shape)


IMPLEMENTATIONS = (
    Implementation("torch_float64", independent.run),
    Implementation("onnx_reference", run_onnx_reference),
    Implementation("onnxruntime", run_onnxruntime),
    Implementation("onnxruntime_unoptimised", lambda case: run_onnxruntime(case, optimised=False)),
)
