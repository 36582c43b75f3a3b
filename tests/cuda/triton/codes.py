"""Tells the emulated library which kernels of Triton it has: those of variants.py, without code."""

import ctypes
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest import mock

from tests.cuda import abi
from tests.cuda.libraries import PLUGINS, Emulator

SOURCES = PLUGINS / "cuda" / "triton"
SHARED_BYTES = 100 * 1024
"""Of every kernel here: more than a launch gets without asking."""


def load(path: Path) -> ModuleType:
    """Import a file of plugins/cuda/triton, or a changed copy of one, for the caller alone."""
    spec = importlib.util.spec_from_file_location(f"moh_triton_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    # Files that are written into plugins/ would count as changed sources of every build.
    with mock.patch.object(sys, "dont_write_bytecode", True):
        spec.loader.exec_module(module)
    return module


variants = load(SOURCES / "variants.py")


class Codes:
    """An entry for each variant of a GPU.

    Attributes:
        by_address: Each variant, by the address of its code.
    """

    def __init__(self, architectures: Sequence[int] = variants.ARCHITECTURES) -> None:
        chosen = [variant for variant in variants.VARIANTS if variant.architecture in architectures]
        self._texts = [ctypes.create_string_buffer(str(item).encode()) for item in chosen]
        self.by_address = dict(zip(map(ctypes.addressof, self._texts), chosen, strict=True))
        self.entries = (abi.TritonCode * len(chosen))(
            *(_entry(item, address) for address, item in self.by_address.items())
        )


def _entry(variant: object, address: int) -> abi.TritonCode:
    shape = variant.shape
    return abi.TritonCode(
        variant.architecture,
        abi.DTYPES[variant.dtype],
        shape.columns,
        shape.tile_rows,
        32 * shape.warps,
        SHARED_BYTES,
        b"attend",
        address,
        len(str(variant)),
    )


@contextmanager
def installed(emulator: Emulator, codes: Codes) -> Iterator[None]:
    """Let the library have these kernels."""
    set_codes = emulator.library.moh_emulator_set_triton_codes
    set_codes(codes.entries, len(codes.entries))
    try:
        yield
    finally:
        set_codes(None, 0)
