import pytest

from moh_deploy.runtime.kernel_use import BFLOAT16_SETS
from tests.nightly import nightly_if
from tests.plugins.kernels import INSTRUCTION_SETS, Kernels, kernels_of


@pytest.fixture(
    params=[pytest.param(s, marks=nightly_if(s in BFLOAT16_SETS)) for s in INSTRUCTION_SETS],
    scope="session",
)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The installation's kernels for each instruction set that the machine has.

    A push takes those with products of bfloat16 where they differ from those for avx512: in the
    contract of bfloat16, and in these products (test_bfloat16_compute.py).
    """
    return kernels_of(request.param)
