"""MoHRouter on the CPU kernels, for sizes, options and logits that no table lists."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.nightly import sampled
from tests.plugins.draws import router_setups
from tests.plugins.kernels import Kernels, assert_right
from tests.plugins.router_setups import RouterSetup


@sampled(3)
@given(setup=router_setups())
def test_any_router_agrees_with_the_reference(kernels: Kernels, setup: RouterSetup):
    case = setup.case()
    assume(setup.logits != "wide" or not _last_choice_underflows(case))
    assert_right(case, kernels.run(case))


def _last_choice_underflows(case: Case) -> bool:
    """Tell whether a chosen probability may be below the normal numbers of float32.

    Such probabilities tie, or differ, as each implementation rounds them.
    """
    logits, top_k = case.inputs()[0], case.attributes["top_k"]
    if logits is None or not top_k:
        return False
    ranked = np.sort(logits.astype(np.float32), axis=-1)
    return bool((ranked[..., -1] - ranked[..., -top_k] > 80).any())


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("num_routed", [1, 4, 5, 16, 17, 70])
def test_ties_go_to_the_lowest_heads(kernels: Kernels, num_routed: int, dtype: str):
    top_k = (num_routed + 1) // 2
    setup = RouterSetup(num_routed=num_routed, top_k=top_k, num_shared=0, dtype=dtype)
    case = replace(setup, shared_logits=False, staged=False, logits="equal").case()
    (gates,) = kernels.run(case)
    np.testing.assert_allclose(gates[..., :top_k].astype(np.float32), 1, rtol=1e-6)
    assert np.all(gates[..., top_k:] == 0)


def _with_nan(case: Case, tokens: slice) -> Case:
    def build(rng: np.random.Generator):
        arrays = case.build(rng)
        for array in arrays:
            array[:, tokens, ::2] = np.nan
        return arrays

    return replace(case, build=build)


def test_nan_logits_of_a_token_do_not_reach_another_token(kernels: Kernels):
    case = RouterSetup(seq_len=9, num_routed=37, top_k=5).case()
    clean = kernels.run(case)[0]
    gates = kernels.run(_with_nan(case, slice(3, 5)))[0]
    others = np.r_[0:3, 5:9]
    np.testing.assert_array_equal(gates[:, others], clean[:, others])


def test_nan_logits_give_nan_gates(kernels: Kernels):
    """Which heads are chosen is not defined, that some are is."""
    case = RouterSetup(num_routed=37, top_k=5).case()
    gates = kernels.run(_with_nan(case, slice(None)))[0]
    assert np.all(np.isnan(gates[..., :2]))
    assert np.all(np.isnan(gates[..., 2:]).sum(-1) >= 5)
