import pytest

from tests.cuda import nvcc
from tests.cuda.interpreted import Interpreted
from tests.cuda.libraries import PLAIN, Emulator, NoHeaders, build


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """The kernels in the emulator, built without sanitizers."""
    try:
        return Emulator(build(PLAIN))
    except NoHeaders as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def needs_nvcc() -> None:
    """Skip where there is no nvcc."""
    try:
        nvcc.compiler()
    except nvcc.NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def interpreted(emulator: Emulator, needs_nvcc: None) -> Interpreted:
    """The host code of the emulator over kernels that nvcc compiles, those of large heads where a
    test runs one."""
    return Interpreted(emulator, map(nvcc.ptx_of_one, nvcc.kernel_sources()))
