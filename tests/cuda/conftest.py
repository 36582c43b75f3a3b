from __future__ import annotations

import pytest

from tests.cuda.libraries import PLAIN, Emulator, NoHeaders, build


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """The kernels in the emulator, built without sanitizers."""
    try:
        return Emulator(build(PLAIN))
    except NoHeaders as error:
        pytest.skip(str(error))
