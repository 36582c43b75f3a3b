"""Kernels write every element of their output, and read none of what was there before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops.cases import Case
from moh_deploy.ops.contract import find_mismatch
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.ops.case_models import case_model
from tests.ops.cases import ALL_CASES
from tests.plugins.attention_setups import AttentionSetup
from tests.plugins.kernels import Kernels, memory_for, run_into

TILES = AttentionSetup(batch=2, seq_len=130, kv_len=300, head_dim=37, value_dim=21)


def _cases(dtype: str) -> list[Case]:
    named = [case for case in ALL_CASES if case.dtype == dtype]
    gates = ("share", "few", "none", "one_row", "no_head_0")
    drawn = [replace(TILES, dtype=dtype, gates=pattern, rank=4) for pattern in gates]
    return [*named, *(setup.case() for setup in drawn)]


@pytest.mark.parametrize("poison", [np.nan, 777.0])
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_what_the_output_held_before_does_not_matter(kernels: Kernels, dtype: str, poison: float):
    problems = []
    for case in _cases(dtype):
        output = run_into(memory_for(case, poison), kernels.session(case_model(case)), case)
        problems.append(find_mismatch(case, [output]))
    assert [problem for problem in problems if problem is not None] == []
