"""Runs a few lines of PTX: every thread for itself, on its own element of some arrays."""

import numpy as np

from tests.cuda.ptx.interpreter import NO_CHECKS, Interpreter
from tests.cuda.ptx.machine import Checks

# Registers and types to load and store elements with, by their size.
_REGISTERS = {1: ("b16", "u8"), 2: ("b16", "b16"), 4: ("b32", "b32"), 8: ("b64", "b64")}

_HEAD = """.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 shared[];
"""


def kernel_text(code: str, inputs: list[np.dtype], results: list[np.dtype]) -> str:
    """Return a module whose kernel loads a0, a1, ..., runs `code`, and stores d0, d1, ...

    `code` may use thread (its number in the grid), tid, ctaid and ntid, predicates p0..p3, and
    registers x0..x9 (32 bits), y0..y9 (64 bits), f0..f9 (float32) and h0..h9 (16 bits).
    """
    count = len(inputs) + len(results)
    params = ", ".join(f".param .u64 pointer{number}" for number in range(count))
    return f"""{_HEAD}
.visible .entry lines({params})
{{
    .reg .b32 thread, tid, ctaid, ntid, x<10>;
    .reg .b64 %address<{count}>, %index, y<10>;
    .reg .b16 h<10>;
    .reg .f32 f<10>;
    .reg .pred p<4>;
    {"".join(_declare("a", number, dtype) for number, dtype in enumerate(inputs))}
    {"".join(_declare("d", number, dtype) for number, dtype in enumerate(results))}
    mov.u32 tid, %tid.x;
    mov.u32 ctaid, %ctaid.x;
    mov.u32 ntid, %ntid.x;
    mad.lo.u32 thread, ctaid, ntid, tid;
    {"".join(_address(number, dtype) for number, dtype in enumerate([*inputs, *results]))}
    {"".join(_load(number, dtype) for number, dtype in enumerate(inputs))}
    {code}
    {"".join(_store(number, dtype, len(inputs)) for number, dtype in enumerate(results))}
    ret;
}}
"""


def evaluate(
    code: str,
    *inputs: np.ndarray,
    results: tuple[str, ...] = ("u4",),
    threads: int | None = None,
    shared_bytes: int = 0,
    checks: Checks = NO_CHECKS,
) -> list[np.ndarray]:
    """Run lines of PTX on arrays of one length, and return the arrays of results.

    Args:
        threads: Of a block; None: one block for all.
    """
    total = len(inputs[0])
    block = total if threads is None else threads
    arrays = [np.ascontiguousarray(array) for array in inputs]
    outputs = [np.full(total, 0x7E, np.uint8).astype(np.dtype(result)) for result in results]
    text = kernel_text(code, [a.dtype for a in arrays], [o.dtype for o in outputs])
    pointers = np.array([a.ctypes.data for a in (*arrays, *outputs)], np.uint64).tobytes()
    Interpreter(text).launch(
        "lines",
        (total // block, 1, 1),
        (block, 1, 1),
        pointers,
        shared_bytes=shared_bytes,
        allocations=[*arrays, *outputs],
        checks=checks,
    )
    return outputs


def _declare(letter: str, number: int, dtype: np.dtype) -> str:
    return f".reg .{_REGISTERS[dtype.itemsize][0]} {letter}{number};\n    "


def _address(number: int, dtype: np.dtype) -> str:
    return (
        f"ld.param.u64 %address{number}, [pointer{number}];\n"
        f"    mul.wide.u32 %index, thread, {dtype.itemsize};\n"
        f"    add.u64 %address{number}, %address{number}, %index;\n    "
    )


def _load(number: int, dtype: np.dtype) -> str:
    return f"ld.global.{_REGISTERS[dtype.itemsize][1]} a{number}, [%address{number}];\n    "


def _store(number: int, dtype: np.dtype, first: int) -> str:
    return f"st.global.{_REGISTERS[dtype.itemsize][1]} [%address{first + number}], d{number};\n    "
