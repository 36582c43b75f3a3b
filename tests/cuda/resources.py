"""What the machine code of each kernel needs of a GPU: registers, stack, spills.

    python -m tests.cuda.resources        writes what there is now to plugins/cuda/registers.json

The library is made in the same way: one PTX, and machine code from it for each architecture.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from tests.cuda import nvcc

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TABLE = nvcc.PLUGINS / "cuda" / "registers.json"

_KERNEL = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """What one kernel needs on one architecture.

    Attributes:
        kernel: Such as `attend<__half, 64, true>`.
        memory_bytes: Stack and spills: memory of a thread, far slower than its registers.
    """

    kernel: str
    architecture: int
    registers: int
    memory_bytes: int


@cache
def measured() -> tuple[Resources, ...]:
    """Assemble all kernels for all architectures, and return what each needs."""
    kernels = [path for path in nvcc.kernel_sources() if path.parent.name == "launch"]
    jobs = list(product(nvcc.ptx_files_of(kernels), ARCHITECTURES))
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda job: _assemble(*job), jobs)
        return tuple(found for report in reports for found in _read(report))


def table() -> dict[str, int]:
    """Return the largest number of registers that each kernel may have."""
    return json.loads(TABLE.read_text())


def write_table() -> None:
    largest: dict[str, int] = {}
    for one in measured():
        largest[one.kernel] = max(largest.get(one.kernel, 0), one.registers)
    TABLE.write_text(json.dumps(dict(sorted(largest.items())), indent=2) + "\n")


def _assemble(ptx: Path, architecture: int) -> str:
    """Return what ptxas reports; kept beside the PTX, whose name tells its content."""
    kept = ptx.with_suffix(f".sm_{architecture}.txt")
    if not kept.exists():
        command = [nvcc.assembler(), "-v", f"-arch=sm_{architecture}", str(ptx), "-o", "/dev/null"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise nvcc.CompilationFailed(ran.stdout + ran.stderr)
        kept.write_text(ran.stderr)
    return kept.read_text()


def _read(report: str) -> Iterator[Resources]:
    for match in _KERNEL.finditer(report):
        yield Resources(
            _readable(match["kernel"]),
            int(match["architecture"]),
            int(match["registers"]),
            sum(int(match[name]) for name in ("stack", "stores", "loads")),
        )


@cache
def _readable(mangled: str) -> str:
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    kernel = re.sub(r"\([^()]*\)$", "", name.strip().removeprefix("void "))
    return kernel.removeprefix("moh::cuda::")


if __name__ == "__main__":
    write_table()
    print(f"{len(table())} kernels in {TABLE}")
