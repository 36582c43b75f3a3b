"""Products with weights of few bits on the CPU kernels, for sizes of no table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.nbits_product import unpacked
from tests.nightly import sampled
from tests.ops.case_models import named_inputs
from tests.ops.cases.nbits_product import BLOCK, product_case
from tests.plugins.draws import nbits_projection_setups
from tests.plugins.kernels import Kernels, assert_right, with_inputs

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 96, 128, 200]))


@st.composite
def drawn_cases(draw: st.DrawFn) -> Case:
    tokens = draw(st.one_of(st.integers(1, 9), st.integers(1, 40)))
    # Columns are read 32 blocks at a time.
    rows = draw(st.one_of(SIZES, st.integers(1000, 1100)))
    columns, bits = draw(SIZES), draw(st.sampled_from([4, 8]))
    return product_case(f"drawn {rows}", "", (1, tokens, rows), columns, bits=bits)


@given(case=drawn_cases())
def test_any_product_agrees_with_the_reference(kernels: Kernels, case: Case):
    assert_right(case, kernels.run(case))


@given(
    case=drawn_cases()
    | nbits_projection_setups(most_products=2_000_000).map(lambda setup: setup.case()),
    seed=st.integers(0, 2**32 - 1),
)
def test_rounding_moves_a_result_by_no_more_than_half_a_step_of_each_block(
    kernels: Kernels, case: Case, seed: int
):
    """Of rows that 8 bits do not hold: a step is the 127th part of a block's largest number."""
    given = named_inputs(case)
    x = np.random.default_rng(seed).standard_normal(given["X"].shape).astype(np.float32)
    x[given["X"] == 0] = 0  # rows of closed heads
    case = with_inputs(case, X=x)
    (got,) = kernels.run(case)
    (expected,) = OPS[case.op].reference(case.inputs(), case.attributes)
    weight = np.abs(unpacked(given["W"], given["scales"]))  # [blocks * 32, N]
    rows = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (0, 0), (0, len(weight) - x.shape[2])))
    largest = rows.reshape(*x.shape[:2], -1, BLOCK).max(axis=-1)  # [B, S, blocks]
    bound = 0.5 / 127 * (largest @ weight.reshape(-1, BLOCK, weight.shape[1]).sum(axis=1))
    specified = OPS[case.op].specified
    meant = np.True_ if specified is None else specified(case.inputs(), case.attributes)[0]
    error = np.where(meant, np.abs(got - expected), 0.0)
    assert np.all(error <= 1.001 * bound + 1e-5 * (1 + np.abs(expected)))


@sampled(4)
@pytest.mark.parametrize("bits", [4, 8])
def test_other_tokens_change_no_bit(kernels: Kernels, bits: int):
    case = product_case("together", "", (2, 37, 1100), 70, bits=bits)
    x = named_inputs(case)["X"]
    together = kernels.run(case)[0]
    for batch, token in ((0, 0), (1, 36)):
        one = x[batch : batch + 1, token : token + 1]
        alone = kernels.run(with_inputs(case, X=one))[0]
        np.testing.assert_array_equal(alone[0, 0], together[batch, token])
