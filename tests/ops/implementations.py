"""Everything that claims to compute the ops: a new one joins by a line in IMPLEMENTATIONS."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from moh_deploy.ops.cases import Case
from tests.ops import independent
from tests.ops.case_models import case_model, named_inputs
from tests.plugins.kernels import INSTRUCTION_SETS, kernels_of, run_session


@dataclass(frozen=True)
class Implementation:
    name: str
    run: Callable[[Case], list[np.ndarray]]

    def __str__(self) -> str:
        return self.name


class MatMulNBits(OpRun):
    """ONNX Runtime's product with weights in blocks, of which onnx has no reference."""

    op_domain = "com.microsoft"

    def _run(self, x, packed, scales, K=None, N=None, bits=None, block_size=None, **_):
        assert (block_size, packed.shape) == (32, (N, -(-K // 32), 4 * bits))
        digits = np.empty((*packed.shape[:2], 32))
        if bits == 4:
            digits[..., ::2], digits[..., 1::2] = packed & 15, packed >> 4
        else:
            digits[:] = packed
        weight = ((digits - 2 ** (bits - 1)) * scales[..., None]).reshape(N, -1)[:, :K]
        return ((x @ weight.T).astype(x.dtype),)


def run_onnx_reference(case: Case, model: onnx.ModelProto | None = None) -> list[np.ndarray]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # It computes on NaN and Inf as it finds them.
        model = model or case_model(case)
        if any(imported.domain == MatMulNBits.op_domain for imported in model.opset_import):
            model = inline_local_functions(model)  # new operators are known outside of functions
        evaluator = ReferenceEvaluator(model, new_ops=[MatMulNBits])
        return evaluator.run(None, named_inputs(case))


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
    return run_session(session, case)


def run_kernels(instruction_set: str) -> Callable[[Case], list[np.ndarray]]:
    return lambda case: kernels_of(instruction_set).run(case)


IMPLEMENTATIONS = (
    Implementation("torch_float64", independent.run),
    Implementation("onnx_reference", run_onnx_reference),
    Implementation("onnxruntime", run_onnxruntime),
    Implementation("onnxruntime_unoptimised", lambda case: run_onnxruntime(case, optimised=False)),
    *(Implementation(f"ort_kernels_{name}", run_kernels(name)) for name in INSTRUCTION_SETS),
)
