"""Triton's kernel, compiled for Hopper and Blackwell: no GPU takes part."""

import ctypes
import importlib.util
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cuda import abi
from tests.cuda.nvcc import INCLUDES
from tests.cuda.triton.codes import variants
from tests.kept_builds import COMPILER
from tests.nightly import first_of_each, nightly

if importlib.util.find_spec("triton") is not None:
    from tests.cuda.triton import compiled

pytestmark = pytest.mark.usefixtures("needs_triton")

VARIANTS = variants.VARIANTS
PRODUCTS = {90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""Instructions of the matrix units that each generation has of its own."""

_COPY = re.compile(r"cp\.async\.\w+\.shared\.global \[[^;]*\], \[[^;]*\], (0x\w+)")


@pytest.mark.parametrize(
    "variant", first_of_each(VARIANTS, lambda variant: "one is enough for a push"), ids=str
)
def test_code_is_what_a_launch_expects(variant):
    kernel = compiled.kernel(str(variant))
    ptx = kernel.asm["ptx"]
    assert PRODUCTS[variant.architecture] in ptx
    assert "mma.sync" not in ptx
    assert f".reqntid {32 * variant.shape.warps}" in ptx
    # Keys and values are copied 16 bytes at a time.
    copies = _COPY.findall(ptx)
    assert copies
    assert set(copies) == {"0x10"}
    assert compiled.resources(kernel.cubin).memory_bytes == 0
    assert kernel.shared_bytes <= 227 * 1024
    assert compiled.parameters(kernel.cubin) == _fields(abi.TritonAttentionArguments)


def _fields(struct: type[ctypes.Structure], start: int = 0) -> list[tuple[int, int]]:
    """Offset and size of each number and address in a struct."""
    found = []
    for name, kind, *_ in struct._fields_:
        offset = start + getattr(struct, name).offset
        is_struct = isinstance(kind, type) and issubclass(kind, ctypes.Structure)
        found += _fields(kind, offset) if is_struct else [(offset, ctypes.sizeof(kind))]
    return found


def test_parameters_have_the_names_of_the_arguments():
    def names(struct: type[ctypes.Structure]) -> list[str]:
        found = []
        for name, kind, *_ in struct._fields_:
            if issubclass(kind, ctypes.Structure):
                found += [
                    f"{name.removesuffix('_strides')}_{inner}_stride" for inner, *_ in kind._fields_
                ]
            else:
                found.append(name)
        return found

    types = compiled.compiler().signature("float16")
    *arguments, global_scratch, profile_scratch = names(abi.TritonAttentionArguments)
    assert list(types) == arguments
    assert (global_scratch, profile_scratch) == ("global_scratch", "profile_scratch")


def test_a_kernel_that_needs_scratch_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    compiler, variant = compiled.compiler(), VARIANTS[0]
    metadata = type("Metadata", (), {"global_scratch_size": 64})
    monkeypatch.setattr(
        compiler.triton, "compile", lambda *_, **__: type("Kernel", (), {"metadata": metadata})
    )
    with pytest.raises(compiler.Refused, match=f"{variant}: global_scratch_size is 64; expected 0"):
        compiler.compile_variant(variant)


_PROBE = """
#include "{source}"
extern "C" const moh::cuda::TritonCode* first() {{ return moh::cuda::triton_codes().begin(); }}
extern "C" size_t count() {{ return moh::cuda::triton_codes().count; }}
"""


@nightly
def test_the_source_holds_every_kernel(tmp_path: Path):
    kernels = [compiled.kernel(str(item)) for item in VARIANTS]
    source, probe, library = (tmp_path / name for name in ("code.cc", "probe.cc", "probe.so"))
    source.write_text(compiled.compiler().source_text(kernels))
    probe.write_text(_PROBE.format(source=source))
    includes = [f"-I{folder}" for folder in INCLUDES]
    options = ["-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror", *includes]
    subprocess.run([COMPILER, *options, str(probe), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.first.restype, loaded.count.restype = ctypes.POINTER(abi.TritonCode), ctypes.c_size_t
    assert loaded.count() == len(kernels)
    for entry, kernel in zip(loaded.first()[: len(kernels)], kernels, strict=True):
        variant, shape = kernel.variant, kernel.variant.shape
        assert (entry.compute_capability, entry.columns) == (variant.architecture, shape.columns)
        assert entry.dtype == abi.DTYPES[variant.dtype]
        assert (entry.tile_rows, entry.threads) == (shape.tile_rows, 32 * shape.warps)
        assert (entry.kernel, entry.shared_bytes) == (b"attend", kernel.shared_bytes)
        assert ctypes.string_at(entry.code, entry.code_bytes) == kernel.cubin
        assert b"attention.py" not in kernel.cubin


def test_variants_of_a_gpu_and_dtype_come_in_order():
    """The first that a head fits into is taken."""
    for item, other in pairwise(VARIANTS):
        if (item.architecture, item.dtype) == (other.architecture, other.dtype):
            assert item.shape.columns < other.shape.columns
