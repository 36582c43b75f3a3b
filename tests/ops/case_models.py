"""A case as a model of one node, and its inputs by name."""

import numpy as np
import onnx

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.onnx_schema import single_node_model


def case_model(case: Case, *, opset: int = 18, function: onnx.FunctionProto | None = None):
    return single_node_model(
        case.op, case.input_types(), case.attributes, opset=opset, function=function
    )


def named_inputs(case: Case) -> dict[str, np.ndarray]:
    names = (given.name for given in OPS[case.op].inputs)
    pairs = zip(names, case.inputs(), strict=False)
    return {name: array for name, array in pairs if array is not None}
