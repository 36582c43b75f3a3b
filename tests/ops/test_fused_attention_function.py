"""The body of MoHAttention over ONNX's Attention computes what the op means."""

import numpy as np
import onnx
import pytest
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from moh_deploy.ops import OPS
from moh_deploy.ops.attention_function import variant_of
from moh_deploy.ops.cases import Case, find_mismatch
from moh_deploy.ops.fused_attention_function import FUSED_OPSET, fused_function_body
from tests.nightly import nightly
from tests.ops.batches import Batch, assert_nothing_wrong
from tests.ops.case_models import case_model, named_inputs
from tests.ops.cases import named_case
from tests.ops.implementations import run_onnxruntime


def _body(case: Case) -> onnx.FunctionProto:
    types = case.input_types()
    attributes = OPS[case.op].complete(case.attributes)
    square = types[0].shape[-2] == types[1].shape[-2]
    return fused_function_body(variant_of(types, attributes), square=square)


def _run(case: Case) -> list[np.ndarray]:
    return run_onnxruntime(case, case_model(case, opset=FUSED_OPSET, function=_body(case)))


# ONNX Runtime's Attention rounds scores to the dtype of its inputs.
ROUNDED = ("large_scores", "very_negative_scores")


def _is_run(case: Case) -> bool:
    """ONNX Runtime's Attention takes no empty tensor, and no scale that is not positive."""
    if case.dtype == "float16" and case.name in ROUNDED:
        return False
    types = case.input_types()
    empty = any(0 in type_.shape for type_ in types if type_ is not None)
    return not empty and len(types) <= 5 and float(case.attributes["scale"]) > 0


class Attention(OpRun):
    """What opset 23 promises of Attention, and no more: rows that see no key are NaN, and a causal
    query s sees the keys up to s."""

    op_domain = ""

    def _run(self, query, key, value, mask=None, is_causal=None, scale=None, **others):
        repeats = query.shape[1] // key.shape[1]
        key_BHTD, value_BHTD = (np.repeat(given, repeats, axis=1) for given in (key, value))
        scores = scale * np.matmul(query, key_BHTD.swapaxes(2, 3), dtype=np.float64)
        if mask is not None:
            assert mask.shape[2:] == scores.shape[2:], "TensorRT takes no other"
            assert not is_causal, "TensorRT takes one of them"
            scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
        if is_causal:
            scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (np.matmul(weights, value_BHTD).astype(query.dtype),)


def _run_on_numpy(case: Case) -> list[np.ndarray]:
    # Only what stands in the main graph is looked up among new operators.
    model = inline_local_functions(case_model(case, opset=FUSED_OPSET, function=_body(case)))
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model, new_ops=[Attention]).run(None, named_inputs(case))


def test_it_needs_no_more_of_attention_than_that_promises():
    # A cache that is not filled is no candidate for it: see `moh_deploy/runtime/tensorrt`.
    cases = [
        case for case in Batch("MoHAttention", "float32").cases if len(case.input_types()) <= 5
    ]
    assert_nothing_wrong(cases, lambda case: find_mismatch(case, _run_on_numpy(case)))


@nightly
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_agrees_with_the_reference(dtype: str):
    cases = [case for case in Batch("MoHAttention", dtype).cases if _is_run(case)]
    assert len(cases) > 30
    assert_nothing_wrong(cases, lambda case: find_mismatch(case, _run(case)))


@pytest.mark.parametrize(
    ("name", "square", "is_causal", "inputs"),
    [
        ("causal", True, 1, 3),
        # The same node, were its keys as many as its queries at some sizes only.
        ("causal", False, 0, 4),
        ("plain_rank3", False, 0, 3),
        ("bool_mask_causal", True, 0, 4),
    ],
)
def test_positions_are_a_mask_unless_there_is_one_key_a_query(
    name: str, square: bool, is_causal: int, inputs: int
):
    case = named_case("MoHAttention", name, "float32")
    attributes = OPS[case.op].complete(case.attributes)
    body = fused_function_body(variant_of(case.input_types(), attributes), square=square)
    (attention,) = [node for node in body.node if node.op_type == "Attention"]
    found = {given.name: given.i for given in attention.attribute}
    assert (found["is_causal"], len(attention.input)) == (is_causal, inputs)
