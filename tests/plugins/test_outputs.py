"""Kernels write every element of their output, and read none of what was there before."""

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.nightly import in_turn, sampled
from tests.ops.batches import assert_outputs_right
from tests.ops.case_models import case_model
from tests.ops.cases import ALL_CASES
from tests.plugins.attention_setups import AttentionSetup
from tests.plugins.kernels import INSTRUCTION_SETS, kernels_of, memory_for, run_into

TILES = AttentionSetup(batch=2, seq_len=130, kv_len=300, head_dim=37, value_dim=21)


def _cases(dtype: str) -> list[Case]:
    named = [case for case in ALL_CASES if case.dtype == dtype]
    gates = ("share", "few", "none", "one_row", "no_head_0")
    drawn = [replace(TILES, dtype=dtype, gates=pattern, rank=4) for pattern in gates]
    return [*named, *(setup.case() for setup in drawn)]


# bfloat16 first: the first instruction set is the one with instructions for it.
OUTPUTS = [(dtype, poison) for poison in (np.nan, 777.0) for dtype in reversed(FLOAT_TYPES)]
# A third of the cases at a time: a push runs another one on each instruction set.
THIRDS = [
    (dtype, poison, (turn + number) % 3)
    for turn in range(3)
    for number, (dtype, poison) in enumerate(OUTPUTS)
]


@sampled(5)
@pytest.mark.parametrize(("instruction_set", "output"), in_turn(INSTRUCTION_SETS, THIRDS))
def test_what_the_output_held_before_does_not_matter(
    instruction_set: str, output: tuple[str, float, int]
):
    kernels, (dtype, poison, third) = kernels_of(instruction_set), output

    def run(case: Case) -> list[np.ndarray]:
        return [run_into(memory_for(case, poison), kernels.session(case_model(case)), case)]

    assert_outputs_right(_cases(dtype)[third::3], run)
