"""What a row gives does not depend on which other rows there are, only on their number."""

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops.cases import Case
from tests.nightly import sampled
from tests.plugins.attention_setups import AttentionSetup, MaskSetup
from tests.plugins.kernels import Kernels

_SETUP = AttentionSetup(seq_len=200, kv_len=600, kv_num_heads=2, head_dim=24, value_dim=24)
SETUPS = {
    "plain": _SETUP,
    "causal": replace(_SETUP, is_causal=True),
    "causal_grouped": replace(_SETUP, is_causal=True, group=3),
    "masked": replace(_SETUP, mask=MaskSetup("float32", pattern="window")),
}


def _with_half_of_the_gates(case: Case) -> tuple[Case, np.ndarray]:
    """Return the case with other gates closed, and where gates [B, S, H] are still open."""
    inputs = [None if array is None else array.copy() for array in case.inputs()]
    gates = inputs[3]
    gates[np.random.default_rng(0).random(gates.shape) < 0.5] = 0
    return replace(case, build=lambda _: tuple(inputs)), gates != 0


@sampled(4)
@pytest.mark.parametrize("name", SETUPS)
def test_closing_other_rows_changes_no_bit(kernels: Kernels, name: str):
    case = SETUPS[name].case()
    fewer, still_open = _with_half_of_the_gates(case)
    all_rows, some_rows = kernels.run(case)[0], kernels.run(fewer)[0]
    heads = (*still_open.shape, -1)  # outputs are [B, S, H * D]
    np.testing.assert_array_equal(
        all_rows.reshape(heads)[still_open], some_rows.reshape(heads)[still_open]
    )
