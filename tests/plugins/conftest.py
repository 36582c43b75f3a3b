from __future__ import annotations

import pytest

from tests.nightly import nightly_if
from tests.plugins.kernels import INSTRUCTION_SETS, Kernels, kernels_of


@pytest.fixture(
    params=[pytest.param(s, marks=nightly_if(s == "avx512_bf16")) for s in INSTRUCTION_SETS],
    scope="session",
)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The installation's kernels for each instruction set that the machine has.

    A push takes those for avx512_bf16 where they differ from those for avx512: in the contract of
    bfloat16, and in products of bfloat16 operands (test_bfloat16_compute.py).
    """
    return kernels_of(request.param)
