from __future__ import annotations

import pytest

from tests.plugins.kernels import INSTRUCTION_SETS, Kernels, kernels_of


@pytest.fixture(params=INSTRUCTION_SETS, scope="session")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """The installation's kernels for each instruction set that the machine has."""
    return kernels_of(request.param)
