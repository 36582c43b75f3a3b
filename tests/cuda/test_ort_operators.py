"""ONNX Runtime's operators for its CUDA provider, over the emulated kernels on its CPU."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from moh_deploy.ops.cases import Case
from tests.cuda.libraries import PLAIN, build
from tests.nightly import sampled
from tests.ops.batches import Batch, assert_outputs_right, batches_of
from tests.ops.case_models import case_model, named_inputs
from tests.ops.cases import OP_CASES
from tests.plugins.kernels import run_session

OPERATORS = ("MoHRouter", "MoHAttention", "MoHAggregatedAttention")


@pytest.fixture(scope="module")
def library(emulator: object) -> Path:
    path = build(PLAIN).with_name("libmoh_ort_cuda_emulated.so")
    if not path.is_file():
        pytest.skip("ONNX Runtime's headers were not found: apt install libonnxruntime-dev")
    return path


def session(library: Path, model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(library))
    # Without the function body only the library can run it.
    del model.functions[:]
    content = model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@sampled(8)
@pytest.mark.parametrize("batch", batches_of(OPERATORS), ids=str)
def test_operator_agrees_with_the_reference(library: Path, batch: Batch):
    def run(case: Case) -> list[np.ndarray]:
        return run_session(session(library, case_model(case)), case)

    assert_outputs_right(batch.cases, run)


def test_operator_refuses_what_does_not_fit(library: Path):
    case = OP_CASES["MoHAttention"][0]
    feeds = dict(named_inputs(case))
    feeds["gates"] = np.ascontiguousarray(feeds["gates"][:, :-1])
    wrong = re.escape(f"MoHAttention: gates is {list(feeds['gates'].shape)}")
    with pytest.raises(Exception, match=wrong):
        session(library, free_shapes(case_model(case))).run(None, feeds)


def free_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the runtime take inputs of any size."""
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return model
