"""The projections with weights of 4 bits on the CPU kernels, for sizes and gates of no table."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.nbits_product import unpacked
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from tests.ops.case_models import case_model
from tests.ops.cases.nbits_projection import BLOCK, in_4_bits
from tests.plugins.draws import projection_setups
from tests.plugins.kernels import Kernels, assert_right, memory_for, run_into, run_session
from tests.plugins.nbits_projection_setups import case_of
from tests.plugins.projection_setups import ProjectionSetup

QUERY = ProjectionSetup(batch=2, seq_len=130, num_heads=5, head_dim=24, width=140)
OUTPUT = replace(QUERY, op="MoHOutputProjection")
PROJECTIONS = {"query": QUERY, "output": OUTPUT}


@given(setup=projection_setups())
def test_any_projection_agrees_with_the_reference(kernels: Kernels, setup: ProjectionSetup):
    case = case_of(setup)
    assert_right(case, kernels.run(case))


@given(setup=projection_setups(most_products=2_000_000))
def test_rounding_moves_a_result_by_no_more_than_half_a_step_of_each_block(
    kernels: Kernels, setup: ProjectionSetup
):
    """Of rows that 8 bits do not hold: a step is the 127th part of a block's largest number."""
    case = case_of(setup)
    given = replace(setup, dtype="float32").case().inputs()
    x, (_, packed, gates, scales, *bias) = given[0], case.inputs()
    case = replace(case, build=lambda _: (x, packed, gates, scales, *bias))
    (got,) = kernels.run(case)
    (expected,) = OPS[case.op].reference(case.inputs(), case.attributes)
    weight = np.abs(unpacked(packed, scales))  # [blocks * 32, N]
    rows = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (0, 0), (0, len(weight) - x.shape[2])))
    largest = rows.reshape(*x.shape[:2], -1, BLOCK).max(axis=-1)  # [B, S, blocks]
    sums = weight.reshape(-1, BLOCK, weight.shape[1]).sum(axis=1)  # [blocks, N]
    bound = 0.5 / 127 * (largest @ sums)
    specified = OPS[case.op].specified
    meant = np.True_ if specified is None else specified(case.inputs(), case.attributes)[0]
    error = np.where(meant, np.abs(got - expected), 0.0)
    assert np.all(error <= 1.001 * bound + 1e-5 * (1 + np.abs(expected)))


def _with_constant_weight(case: Case) -> onnx.ModelProto:
    model, arrays = case_model(case), case.inputs()
    for name, array in (("W", arrays[1]), ("scales", arrays[3])):
        given = [one for one in model.graph.input if one.name != name]
        del model.graph.input[:]
        model.graph.input.extend(given)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize("name", PROJECTIONS)
def test_constant_weight_gives_the_same_bits_as_one_of_each_call(kernels: Kernels, name: str):
    case = case_of(PROJECTIONS[name])
    x, _, gates, _, bias = case.inputs()
    session = kernels.session(_with_constant_weight(case))
    assert [one.name for one in session.get_inputs()] == ["X", "gates", "bias"]
    values = {k: to_ort(v) for k, v in {"X": x, "gates": gates, "bias": bias}.items()}
    constant = from_ort(session.run_with_ort_values(None, values)[0])
    assert constant.tobytes() == kernels.run(case)[0].tobytes()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_weight_of_each_call_may_differ(kernels: Kernels, name: str):
    case = case_of(PROJECTIONS[name])
    x, weight, gates, scales, bias = case.inputs()
    session = kernels.session(case_model(case))
    run_session(session, case)
    doubled = replace(case, build=lambda _: (x, weight, gates, 2 * scales, bias))
    assert_right(doubled, run_session(session, doubled))


@pytest.mark.parametrize("head_dim", [5, 16, 24, 70])
def test_queries_of_closed_heads_are_written_as_0(kernels: Kernels, head_dim: int):
    setup = replace(QUERY, head_dim=head_dim)
    case = case_of(setup)
    output = run_into(memory_for(case, np.nan), kernels.session(case_model(case)), case)
    closed = case.inputs()[2] == 0
    by_head = output.reshape(*closed.shape, head_dim)
    assert closed.any()
    assert np.all(by_head[closed] == 0)
    assert np.all(by_head[~closed].any(axis=-1))


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_weights_of_a_head_that_nobody_chose_are_not_used(
    kernels: Kernels, name: str, head_dim: int
):
    case = case_of(replace(PROJECTIONS[name], gates="no_head_0", head_dim=head_dim))
    x, weight, gates, scales, bias = case.inputs()
    poisoned = scales.copy()  # [N, blocks]
    (poisoned[:head_dim] if name == "query" else poisoned[:, : head_dim // BLOCK])[:] = np.nan
    other = replace(case, build=lambda _: (x, weight, gates, poisoned, bias))
    assert kernels.run(other)[0].tobytes() == kernels.run(case)[0].tobytes()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_other_tokens_change_no_bit(kernels: Kernels, name: str):
    """So a token's answer does not depend on what else is in the batch, or how many there are."""
    case = case_of(replace(PROJECTIONS[name], gates="shared_heads"))
    x, weight, gates, scales, bias = (array.copy() for array in case.inputs())
    others = np.random.default_rng(0).random(gates.shape[:2]) < 0.5
    gates[others] = 0
    x[others] = np.nan if name == "query" else 0
    fewer = replace(case, build=lambda _: (x, weight, gates, scales, bias))
    np.testing.assert_array_equal(kernels.run(case)[0][~others], kernels.run(fewer)[0][~others])
    one = replace(case, build=lambda _: (x[:1, :1], weight, gates[:1, :1], scales, bias))
    np.testing.assert_array_equal(kernels.run(fewer)[0][:1, :1], kernels.run(one)[0])


@pytest.mark.parametrize(
    ("x", "what"),
    [
        (np.full(140, 1e-42), "numbers too small for a step"),
        (np.where(np.arange(140) == 3, np.inf, 1.0), "an infinity"),
        (np.where(np.arange(140) == 70, np.nan, 1.0), "NaN"),
    ],
    ids=["subnormal", "infinite", "nan"],
)
def test_rows_without_a_scale_reach_no_other_row(kernels: Kernels, x: np.ndarray, what: str):
    case = case_of(replace(QUERY, gates="all"))
    given, *others = case.inputs()
    changed = given.copy()
    changed[0, 0] = x
    got = kernels.run(replace(case, build=lambda _: (changed, *others)))[0]
    before = kernels.run(case)[0]
    np.testing.assert_array_equal(got[0, 1:], before[0, 1:])
    np.testing.assert_array_equal(got[1], before[1])
    if what == "numbers too small for a step":
        np.testing.assert_allclose(got[0, 0], others[3], atol=1e-30)  # the bias
    else:
        assert np.isnan(got[0, 0]).all()


def test_digits_behind_the_last_row_are_not_read(kernels: Kernels):
    case = case_of(replace(QUERY, width=33))
    x, weight, gates, scales, bias = case.inputs()
    digits, _ = in_4_bits(np.zeros((33, len(weight))), np.random.default_rng(5))
    other = weight.copy()
    other[:, 1, 1:] = digits[:, 1, 1:]  # of the second block's 32 rows there is the first
    other[:, 1, 0] = other[:, 1, 0] & 15 | digits[:, 1, 0] & 0xF0
    changed = replace(case, build=lambda _: (x, other, gates, scales, bias))
    assert kernels.run(changed)[0].tobytes() == kernels.run(case)[0].tobytes()
