"""Attention over tensors whose tokens lie gigabytes apart: views, as of one tensor for all three
inputs, with offsets of more than 32 bits. Run by the emulator.
"""

import pytest

from moh_deploy.ops.cases import Case
from tests.cuda.far_apart import far_apart
from tests.cuda.kernels import Kernels, plans_of
from tests.cuda.libraries import Emulator
from tests.nightly import sampled
from tests.ops.cases import OP_CASES

NAMES = ("plain_rank3", "grouped", "causal_more_keys", "bool_mask_by_head")
CASES = [case for case in OP_CASES["MoHAttention"] if case.name in NAMES]


@sampled(10)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_may_be_far_apart(emulator: Emulator, case: Case):
    kernels = Kernels(emulator.library, place=far_apart)
    for plan in plans_of(case):
        with emulator.configured(seed=1, late_copies=1):
            assert kernels.find_mismatch(case, plan) is None, plan
