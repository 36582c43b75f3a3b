"""MoHAggregatedAttention on the CPU kernels, for sizes and options that no table lists."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from moh_deploy.ops.spec import FLOAT_TYPES
from tests.nightly import in_turn, sampled
from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup
from tests.plugins.draws import aggregated_attention_setups
from tests.plugins.kernels import Kernels, assert_right

SETUP = AggregatedAttentionSetup(batch=2, height=9, width=21, head_dim=24, gates="all")


@sampled(3)
@given(setup=aggregated_attention_setups())
def test_any_aggregated_attention_agrees_with_the_reference(
    kernels: Kernels, setup: AggregatedAttentionSetup
):
    case = setup.case()
    assert_right(case, kernels.run(case))


# What the draws may miss: several bands of tokens, images of one row or column, windows that reach
# beyond the image on both sides or over several bands, vectors with nothing open.
_LARGE = AggregatedAttentionSetup(batch=2, num_heads=3, head_dim=24, pooled=49)
LARGE = {
    "many_bands": replace(_LARGE, height=56, width=56, gates="all"),
    "many_bands_half_open": replace(_LARGE, height=41, width=43),
    "mostly_closed": replace(_LARGE, height=37, width=39, gates="few"),
    "one_open_row": replace(_LARGE, height=28, width=28, gates="one_row"),
    "one_row_of_pixels": replace(_LARGE, height=1, width=1100),
    "one_column_of_pixels": replace(_LARGE, height=1100, width=1),
    "narrow": replace(_LARGE, height=500, width=3, kernel_width=7),
    "halo_longer_than_a_band": replace(_LARGE, batch=1, height=9, width=300, kernel_height=5),
    "window_larger_than_the_image": replace(
        _LARGE, height=3, width=2, kernel_height=9, kernel_width=7
    ),
    "many_pooled": replace(_LARGE, batch=1, height=20, width=20, pooled=401),
    "large_heads": replace(_LARGE, batch=1, height=14, width=14, head_dim=130),
}


@sampled(8)
@pytest.mark.parametrize(("name", "dtype"), in_turn(LARGE, FLOAT_TYPES))
def test_large_aggregated_attention_agrees_with_the_reference(
    kernels: Kernels, name: str, dtype: str
):
    case = replace(LARGE[name], dtype=dtype).case()
    assert_right(case, kernels.run(case))


@pytest.mark.parametrize("normalize", [True, False])
def test_no_image_at_all_gives_nothing(kernels: Kernels, normalize: bool):
    """The function body cannot: a Reshape does not find out a size where there are no elements."""
    case = replace(SETUP, batch=0, normalize=normalize).case()
    assert_right(case, kernels.run(case))


@sampled(6)
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
    np.testing.assert_array_equal(
        some.reshape(by_head)[is_open], all_open.reshape(by_head)[is_open]
    )
    assert np.all(some.reshape(by_head)[~is_open] == 0)
