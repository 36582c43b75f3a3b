from __future__ import annotations

import pytest

from tests.cuda import nvcc, resources
from tests.nightly import nightly

pytestmark = nightly  # nvcc compiles every kernel for every architecture


@pytest.fixture(scope="module")
def measured() -> tuple[resources.Resources, ...]:
    try:
        return resources.measured()
    except nvcc.NoCompiler as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_no_kernel_spills(measured: tuple[resources.Resources, ...], architecture: int):
    ours = [one for one in measured if one.architecture == architecture]
    assert ours
    assert [one for one in ours if one.memory_bytes] == []


def test_no_kernel_takes_more_registers_than_it_did(measured: tuple[resources.Resources, ...]):
    """A kernel that needs more of them may run fewer blocks: `python -m tests.cuda.resources`
    takes over the new numbers, to be looked at."""
    allowed = resources.table()
    assert {one.kernel for one in measured} == set(allowed)
    assert [one for one in measured if one.registers > allowed[one.kernel]] == []
