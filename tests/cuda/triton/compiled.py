"""What Triton compiles, and what its assembler and disassembler say of it."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

from triton import knobs

from tests.cuda.triton.codes import SOURCES, load, variants

BY_NAME = {str(variant): variant for variant in variants.VARIANTS}
"""The variants; a kernel's name here."""

_USAGE = re.compile(r"REG:(?P<registers>\d+) STACK:(?P<stack>\d+) .*?LOCAL:(?P<local>\d+)")
_PARAMETER = re.compile(
    r"EIATTR_KPARAM_INFO.*?Ordinal\s*:\s*0x(\w+)\s*Offset\s*:\s*0x(\w+)\s*Size\s*:\s*0x(\w+)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What a thread of a kernel needs; memory_bytes: stack and spills."""

    registers: int
    memory_bytes: int


@cache
def compiler() -> ModuleType:
    """Return plugins/cuda/triton/compile.py."""
    return load(SOURCES / "compile.py")


@cache
def kernel(name: str):
    """Compile a variant, once a process."""
    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope():
        knobs.cache.dir = folder
        return compiler().compile_variant(BY_NAME[name])


def resources(cubin: bytes) -> Resources:
    found = _USAGE.search(_cuobjdump(cubin, "-res-usage"))
    return Resources(int(found["registers"]), int(found["stack"]) + int(found["local"]))


def parameters(cubin: bytes) -> list[tuple[int, int]]:
    """Return offset and size of each parameter of the kernel, in order."""
    numbers = [
        tuple(int(number, 16) for number in found)
        for found in _PARAMETER.findall(_cuobjdump(cubin, "-elf"))
    ]
    return [(offset, size) for _, offset, size in sorted(numbers)]


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, option, str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
