"""Lengths of sequences that no host has seen: the kernel holds them within the keys."""

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops.spec import FLOAT_TYPES
from tests.cuda.kernels import PLANS, Kernels, Plan
from tests.cuda.libraries import Emulator
from tests.nightly import sampled
from tests.ops.cases import named_case


@sampled(4)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_a_length_beyond_the_keys_is_that_of_the_nearest_end(
    emulator: Emulator, dtype: str, plan: Plan
):
    case = named_case("MoHAttention", "filled_chunk", dtype)
    query, key, value, gates, mask, _ = case.inputs()
    key, value = (np.nan_to_num(tensor) for tensor in (key, value))

    def output(*lengths: int) -> bytes:
        inputs = (query, key, value, gates, mask, np.array(lengths, np.int64))
        given = replace(case, build=lambda rng: inputs)
        return Kernels(emulator.library).run(given, plan)[0].tobytes()

    keys = key.shape[2]
    assert output(-(2**40), keys + 1, 2**40) == output(0, keys, keys)
