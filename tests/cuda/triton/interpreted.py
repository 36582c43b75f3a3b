"""The host code of the emulated library, with Triton's attention kernel in Triton's interpreter.

The list of rows is written by the emulated kernel, and read by the interpreted one. Triton decides
when it is imported whether kernels are interpreted: only in a process with TRITON_INTERPRET=1.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from triton import knobs, language
from triton.runtime import interpreter

from moh_deploy.ops.cases import Case
from tests.cuda import abi
from tests.cuda.kernels import Kernels, Placement, Plan
from tests.cuda.libraries import Emulator
from tests.cuda.triton.codes import SHARED_BYTES, Codes, installed

LAUNCH_FAILED = 719  # cudaErrorLaunchFailure
_POINTERS = ("query", "key", "value", "gates", "output")


@dataclass(frozen=True)
class CodeLaunch:
    """What the library asks for."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    reads_list: bool


class InterpretedTriton:
    """The emulated library on a GPU that has kernels of Triton.

    Attributes:
        launches: Of machine code, in order.
    """

    def __init__(self, emulator: Emulator, module: ModuleType, architecture: int = 90) -> None:
        assert knobs.runtime.interpret, "TRITON_INTERPRET=1 is not set"
        self.launches: list[CodeLaunch] = []
        self._emulator = emulator
        self._module = module
        self._architecture = architecture
        self._codes = Codes()

    def find_mismatch(self, case: Case, tactic: str, place: Placement = nullcontext) -> str | None:
        """Run a case by Triton's kernel and say what is wrong with it, or return None."""
        kernels = Kernels(self._emulator.library, place=place)
        with self._hooked() as errors:
            before = len(self.launches)
            problem = kernels.find_mismatch(case, Plan(tactic, 1, kernel="triton"))
        if errors:
            raise errors[0]
        # All rows are as right as the open ones, but not what was asked for.
        for launch in self.launches[before:]:
            assert launch.reads_list == (tactic == "sparse"), f"{case}: {tactic}: {launch}"
        return problem

    @contextmanager
    def _hooked(self) -> Iterator[list[Exception]]:
        """Let the library launch the kernel; yields the errors of launches that fail."""
        errors: list[Exception] = []

        def hook(
            code: int,
            name: bytes,
            grid: Sequence[int],
            block: Sequence[int],
            shared_bytes: int,
            parameters: Sequence[int],
        ) -> int:
            try:
                self._launch(code, name.decode(), grid, block, shared_bytes, parameters)
            except Exception as error:  # or it would be lost between here and the library
                errors.append(error)
                return LAUNCH_FAILED
            return 0

        function = abi.CodeHook(hook)
        library = self._emulator.library
        library.moh_emulator_set_code_hook(function)
        try:
            with (
                installed(self._emulator, self._codes),
                self._emulator.configured(compute_capability=self._architecture),
            ):
                yield errors
        finally:
            library.moh_emulator_set_code_hook(None)

    def _launch(
        self,
        code: int,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        parameters: Sequence[int],
    ) -> None:
        variant = self._codes.by_address[code]
        shape = variant.shape
        kernel = getattr(self._module, name)
        names = [name for name in kernel.arg_names if not name.isupper()]
        values = {
            name: _value(name, parameters[at], variant.dtype) for at, name in enumerate(names)
        }
        launch = CodeLaunch(
            name,
            (grid[0], grid[1], grid[2]),
            (block[0], block[1], block[2]),
            shared_bytes,
            reads_list=values["listed"] != 0,
        )
        self.launches.append(launch)
        assert variant.architecture == self._architecture
        assert launch.block == (32 * shape.warps, 1, 1)
        assert launch.shared_bytes == SHARED_BYTES
        with np.errstate(all="ignore"), _products_of_bfloat16():
            kernel[launch.grid](
                **values,
                COLUMNS=shape.columns,
                TILE_ROWS=shape.tile_rows,
                TILE_KEYS=shape.tile_keys,
            )


def _value(name: str, address: int, dtype: str) -> object:
    """Read a parameter, of the type that the kernel is compiled for."""
    if name in _POINTERS:
        return _tensor_at(address, getattr(torch, dtype))
    if name in ("rows", "counts"):
        return _tensor_at(address, torch.int32)
    if name == "ranges":
        return _tensor_at(address, torch.int64)
    if name == "scale_log2":
        return float(ctypes.c_float.from_address(address).value)
    if name.endswith("_stride") or name == "ranges_batch":
        return _int64(ctypes.c_int64.from_address(address).value)
    return int(ctypes.c_int32.from_address(address).value)


def _tensor_at(address: int, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that begins where a pointer points to: the kernel reads beyond it."""
    pointer = ctypes.c_void_p.from_address(address).value
    if pointer is None:
        return torch.empty(0, dtype=dtype)
    bytes_there = np.ctypeslib.as_array((ctypes.c_uint8 * dtype.itemsize).from_address(pointer))
    return torch.from_numpy(bytes_there).view(dtype)


def _int64(value: int) -> object:
    """Return a number that is 64 bits wide however small it is."""
    handle = interpreter.TensorHandle(np.array([value], dtype=np.int64), language.int64)
    return language.tensor(handle, language.int64)


@contextmanager
def _products_of_bfloat16() -> Iterator[None]:
    """Let the interpreter multiply bfloat16, and not the integers that it keeps its bits in."""
    builder: Any = interpreter.InterpreterBuilder
    original = builder.create_dot

    def create_dot(self: object, a: Any, b: Any, *others: Any) -> Any:
        return original(self, _in_float32(a), _in_float32(b), *others)

    builder.create_dot = create_dot
    try:
        yield
    finally:
        builder.create_dot = original


def _in_float32(handle: Any) -> Any:
    if handle.dtype.scalar != language.bfloat16:
        return handle
    bits = handle.data.view(np.uint16).astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), language.float32)
