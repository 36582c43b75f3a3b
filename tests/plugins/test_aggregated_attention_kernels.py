"""MoHAggregatedAttention on the CPU kernels, for sizes and options that no table lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup
from tests.plugins.draws import aggregated_attention_setups
from tests.plugins.kernels import Kernels, assert_right

SETUP = AggregatedAttentionSetup(batch=2, height=9, width=21, head_dim=24, gates="all")


@given(setup=aggregated_attention_setups())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_aggregated_attention_agrees_with_the_reference(
    kernels: Kernels, setup: AggregatedAttentionSetup
):
    case = setup.case()
    assert_right(case, kernels.run(case))


@pytest.mark.parametrize("name", ["K", "V"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (5, 1)])
@pytest.mark.parametrize("pixel", [(4, 10), (0, 0), (8, 20), (3, 20), (0, 16), (4, 15)])
def test_a_pixel_reaches_the_windows_that_hold_it_only(
    kernels: Kernels, pixel: tuple[int, int], kernel: tuple[int, int], name: str
):
    """Bits of all others stay, whatever a vector holds beside it."""
    case = replace(SETUP, kernel_height=kernel[0], kernel_width=kernel[1]).case()
    inputs = list(case.inputs())
    index = {"K": 1, "V": 2}[name]
    inputs[index] = inputs[index].copy()
    inputs[index].reshape(2, 9, 21, -1)[1, pixel[0], pixel[1]] = np.nan
    (before,) = kernels.run(case)
    (after,) = kernels.run(replace(case, build=lambda _: tuple(inputs)))

    rows, columns = np.abs(np.mgrid[:9, :21] - np.reshape(pixel, (2, 1, 1)))
    near = np.zeros((2, 9, 21), bool)
    near[1] = (rows <= kernel[0] // 2) & (columns <= kernel[1] // 2)
    near = near.reshape(2, -1)
    np.testing.assert_array_equal(before[~near], after[~near])
    assert np.isnan(after[near]).all()


def test_a_token_does_not_depend_on_the_gates_of_others(kernels: Kernels):
    """Open rows are put together for the products: each gets its own back."""
    case = SETUP.case()
    inputs = list(case.inputs())
    (all_open,) = kernels.run(case)
    is_open = np.random.default_rng(0).random(inputs[5].shape) < 0.4
    inputs[5] = np.where(is_open, inputs[5], 0.0).astype(np.float32)
    (some,) = kernels.run(replace(case, build=lambda _: tuple(inputs)))
    by_head = (2, 189, 2, 24)
    np.testing.assert_allclose(
        some.reshape(by_head)[is_open], all_open.reshape(by_head)[is_open], rtol=1e-5, atol=1e-6
    )
    assert np.all(some.reshape(by_head)[~is_open] == 0)
