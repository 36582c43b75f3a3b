"""MoHTokenConv on the CPU kernels, for sizes and options that no table lists."""

from dataclasses import replace
from math import erfc, sqrt

import numpy as np
import pytest
from hypothesis import given

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.nightly import sampled
from tests.ops.case_models import named_inputs
from tests.plugins.draws import token_conv_setups
from tests.plugins.kernels import (
    Kernels,
    assert_right,
    run_with_constants,
    with_constants,
    with_inputs,
)
from tests.plugins.token_conv_setups import TokenConvSetup


@sampled(3)
@given(setup=token_conv_setups())
def test_any_token_conv_agrees_with_the_reference(kernels: Kernels, setup: TokenConvSetup):
    case = setup.case()
    assert_right(case, kernels.run(case))


def _identity(values: np.ndarray) -> Case:
    """gelu of each value: one row of pixels, a kernel of one element."""
    setup = TokenConvSetup(height=1, width=1, channels=values.size, activation="gelu", bias=False)
    inputs = (values.reshape(1, 1, -1), np.ones((values.size, 1, 1, 1)), None, None)
    return replace(setup.case(), build=lambda _: inputs)


def test_gelu_is_the_exact_one(kernels: Kernels):
    values = np.concatenate([np.linspace(-12, 12, 48_001), [-1e30, -1e-30, 0.0, 1e-30, 1e30]])
    values = values.astype(np.float32).astype(np.float64)
    (output,) = kernels.run(_identity(values))
    exact = [0.5 * value * erfc(-value / sqrt(2)) for value in values]
    np.testing.assert_allclose(output.ravel(), exact, rtol=1.2e-7, atol=3e-7)


def test_gelu_of_nothing_below_is_exactly_0_and_of_infinity_infinity(kernels: Kernels):
    (output,) = kernels.run(_identity(np.array([-6.0, -9.0, -1e30, 0.0, np.inf, np.nan])))
    np.testing.assert_array_equal(output.ravel(), [0, 0, 0, 0, np.inf, np.nan])


@pytest.mark.parametrize("gated", [False, True])
def test_a_pixel_depends_on_its_neighbours_only(kernels: Kernels, gated: bool):
    """Bits of all others stay, whatever stands in the row's border or the other image."""
    setup = TokenConvSetup(batch=2, height=9, width=11, channels=37, gated=gated, activation="gelu")
    case = setup.case()
    changed = case.inputs()[0].copy()
    changed.reshape(2, 9, 11, -1)[0, 4, 5] = np.nan
    (before,) = kernels.run(case)
    (after,) = kernels.run(with_inputs(case, X=changed))
    near = np.zeros((2, 9, 11), bool)
    near[0, 3:6, 4:7] = True
    far = ~near.reshape(2, 99)
    np.testing.assert_array_equal(before[far], after[far])
    assert np.isnan(after[~far]).all()


# Weight and biases of the model are packed when the session is made, others at each call.
SETUPS = {
    "all": TokenConvSetup(batch=2, height=5, width=9, channels=21, input_bias=True, gated=True),
    "no_bias": TokenConvSetup(height=1, width=4, channels=64, bias=False, activation="gelu"),
    "input_bias_alone": TokenConvSetup(height=3, width=3, bias=False, input_bias=True),
}


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("name", SETUPS)
def test_constant_weights_give_the_same_bits_as_those_of_each_call(
    kernels: Kernels, name: str, dtype: str
):
    case = replace(SETUPS[name], dtype=dtype).case()
    (of_each_call,) = kernels.run(case)
    taps = [item for item in ("W", "bias", "input_bias") if item in named_inputs(case)]
    for constant in (taps, taps[:1], taps[1:]):
        got = run_with_constants(kernels, case, *constant)
        assert got.tobytes() == of_each_call.tobytes()


def test_constant_weight_of_another_shape_is_refused(kernels: Kernels):
    case = SETUPS["no_bias"].case()
    weight = np.zeros((64, 2, 3, 3), np.float32)
    session = kernels.session(with_constants(case, W=weight))
    with pytest.raises(Exception, match=r"W is \[64, 2, 3, 3\]; expected \[64, 1, kernel height"):
        session.run(None, {"X": named_inputs(case)["X"]})
