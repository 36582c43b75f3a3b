"""Products with weights of few bits on the CPU kernels, for sizes of no table."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.nbits_product import unpacked
from tests.nightly import sampled
from tests.ops.cases.nbits_product import BLOCK, product_case
from tests.plugins.kernels import Kernels, assert_right

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


@given(case=drawn_cases(), seed=st.integers(0, 2**32 - 1))
def test_rounding_moves_a_result_by_no_more_than_half_a_step_of_each_block(
    kernels: Kernels, case: Case, seed: int
):
    given, packed, scales = case.inputs()
    x = np.random.default_rng(seed).standard_normal(given.shape).astype(np.float32)
    case = replace(case, build=lambda _: (x, packed, scales))
    (got,) = kernels.run(case)
    (expected,) = OPS[case.op].reference(case.inputs(), case.attributes)
    weight = np.abs(unpacked(packed, scales))  # [blocks * 32, N]
    rows = np.pad(np.abs(x.astype(np.float64)), ((0, 0), (0, 0), (0, len(weight) - x.shape[2])))
    largest = rows.reshape(*x.shape[:2], -1, BLOCK).max(axis=-1)  # [B, S, blocks]
    bound = 0.5 / 127 * (largest @ weight.reshape(-1, BLOCK, weight.shape[1]).sum(axis=1))
    assert np.all(np.abs(got - expected) <= 1.001 * bound + 1e-5 * (1 + np.abs(expected)))


@sampled(4)
@pytest.mark.parametrize("bits", [4, 8])
def test_other_tokens_change_no_bit(kernels: Kernels, bits: int):
    case = product_case("together", "", (2, 37, 1100), 70, bits=bits)
    x, packed, scales = case.inputs()
    together = kernels.run(case)[0]
    for batch, token in ((0, 0), (1, 36)):
        one = x[batch : batch + 1, token : token + 1]
        alone = kernels.run(replace(case, build=lambda _, one=one: (one, packed, scales)))[0]
        np.testing.assert_array_equal(alone[0, 0], together[batch, token])


@pytest.mark.usefixtures("all_cores")
@sampled(4)
@pytest.mark.parametrize("tokens", [1, 1500])
def test_one_two_and_eight_threads_give_the_same_bits(kernels: Kernels, tokens: int):
    """1500 tokens are more than are rounded at a time."""
    case = product_case("threads", "", (1, tokens, 70), 333)
    one, two, eight = (replace(kernels, threads=n).run(case)[0].tobytes() for n in (1, 2, 8))
    assert one == two
    assert one == eight
