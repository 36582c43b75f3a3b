"""What the contract of the projections asks for, and what it leaves open."""

import numpy as np
import pytest

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, find_mismatch
from moh_deploy.ops.projection import ProjectionVariant, function_body
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES, named_case

PROJECTIONS = ("MoHQueryProjection", "MoHOutputProjection")


def _right(case: Case) -> np.ndarray:
    return OPS[case.op].reference(case.inputs(), case.attributes)[0].astype(np.float32)


def _by_head(case: Case, array: np.ndarray) -> np.ndarray:
    """A view [B, S, H, D]."""
    heads = case.attributes["num_heads"]
    return array.reshape(*array.shape[:2], heads, array.shape[2] // heads)


@pytest.mark.parametrize("filling", [0.0, 777.0, np.nan, np.inf])
def test_queries_of_closed_heads_may_be_anything(filling: float):
    case = named_case("MoHQueryProjection", "plain")
    queries, gates = _right(case), case.inputs()[2]
    assert (gates == 0).any()
    _by_head(case, queries)[gates == 0] = filling
    assert find_mismatch(case, [queries]) is None


def test_queries_of_open_heads_may_not():
    case = named_case("MoHQueryProjection", "plain")
    queries, gates = _right(case), case.inputs()[2]
    token = tuple(np.argwhere(gates != 0)[-1])
    _by_head(case, queries)[(*token, -1)] += 1e-3
    assert "Q is out of tolerance" in find_mismatch(case, [queries])


def test_a_nan_gate_is_open():
    case = named_case("MoHQueryProjection", "nan_gates")
    queries, gates = _right(case), case.inputs()[2]
    _by_head(case, queries)[np.isnan(gates)] = 0
    assert "Q is out of tolerance" in find_mismatch(case, [queries])


def test_every_output_of_the_output_projection_counts():
    case = named_case("MoHOutputProjection", "all_closed")
    output = _right(case)
    output[-1, -1, -1] += 1e-3
    assert "Y is out of tolerance" in find_mismatch(case, [output])


@pytest.mark.parametrize("case", OP_CASES["MoHOutputProjection"], ids=str)
def test_output_projection_is_given_zeros_for_closed_heads(case: Case):
    x, _, gates = case.inputs()[:3]
    assert np.all(_by_head(case, x)[gates == 0] == 0)


@pytest.mark.parametrize("op", PROJECTIONS)
def test_cases_reach_every_share_of_open_gates(op: str):
    shares = {np.mean(case.inputs()[2] != 0) for case in OP_CASES[op] if case.inputs()[2].size}
    assert {0.0, 1.0} < shares
    assert any(0.9 < share < 1.0 for share in shares)
    assert any(0.0 < share < 0.3 for share in shares)


@pytest.mark.parametrize("op", PROJECTIONS)
def test_float32_body_is_one_product_and_one_sum(op: str):
    body = function_body(op, ProjectionVariant(half=False, biased=True), opset=18)
    assert [node.op_type for node in body.node] == ["MatMul", "Add"]


@pytest.mark.parametrize("op", PROJECTIONS)
def test_half_precision_body_is_summed_in_float32(op: str):
    case = named_case(op, "long_rows", "bfloat16")
    ops = [node.op_type for node in case_model(case).functions[0].node]
    assert ops.index("Cast") < ops.index("MatMul") < ops.index("CastLike")
