"""Kernels of PTX modules in the place of the emulator's own."""

from collections.abc import Iterator

from tests.cuda import nvcc
from tests.cuda.interpreted import Interpreted
from tests.cuda.libraries import Emulator
from tests.ops.cases import OP_CASES

ROUTER = OP_CASES["MoHRouter"][0]


def test_no_more_modules_are_read_than_kernels_need(emulator: Emulator, needs_nvcc: None):
    (source,) = (
        kernel_source for kernel_source in nvcc.kernel_sources() if kernel_source.stem == "router"
    )

    def modules() -> Iterator[str]:
        yield nvcc.ptx_of_one(source)
        raise AssertionError("read in vain")

    interpreted = Interpreted(emulator, modules())
    assert interpreted.find_mismatch(ROUTER) is None
    assert len(interpreted.launched) == 1


def test_kernel_that_no_module_has_is_named(emulator: Emulator):
    problem = Interpreted(emulator, []).find_mismatch(ROUTER)
    assert problem is not None
    assert "No module has the kernel '" in problem
