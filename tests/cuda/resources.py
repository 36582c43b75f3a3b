"""What the machine code of each kernel needs of a GPU: registers, stack, spills.

    python -m tests.cuda.resources        writes what there is now to plugins/cuda/*.json

The library is made in the same way: one PTX, and machine code from it for each architecture.
"""

import ctypes
import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

from tests.cuda import abi, nvcc
from tests.cuda.libraries import PLAIN, Emulator, build
from tests.cuda.machine_code import MatrixInstructions, matrix_instructions

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TABLE = nvcc.PLUGINS / "cuda" / "registers.json"
OCCUPANCY = nvcc.PLUGINS / "cuda" / "attention_kernels.json"

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


@dataclass(frozen=True)
class Occupancy:
    """How well an instance of `attend` uses a multiprocessor.

    Attributes:
        loads_per_64_products: Of matrices, from shared memory.
        resident_blocks: By architecture, as many as registers and shared memory allow.
    """

    loads_per_64_products: float
    resident_blocks: dict[int, int]


@cache
def measured() -> tuple[Resources, ...]:
    """Assemble all kernels for all architectures, and return what each needs."""
    kernels = [path for path in nvcc.kernel_sources() if path.parent.name == "launch"]
    return measured_of(tuple(kernels), ARCHITECTURES)


def measured_of(sources: tuple[Path, ...], architectures: tuple[int, ...]) -> tuple[Resources, ...]:
    """Assemble the kernels of some sources, and return what each needs."""
    jobs = list(product(nvcc.ptx_files_of(list(sources)), architectures))
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda job: _assemble(*job), jobs)
        return tuple(found for report in reports for found in _read(report))


def machine_code_of(ptx: Path, architecture: int) -> Path:
    """Return where the machine code of a PTX file is kept, once it was assembled."""
    return ptx.with_suffix(f".sm_{architecture}.cubin")


def matrix_instructions_of(source: Path, architecture: int) -> dict[str, MatrixInstructions]:
    """Return what the instances of `attend` in a source have, by kernel."""
    (ptx,) = nvcc.ptx_files_of([source])
    _assemble(ptx, architecture)
    found = matrix_instructions(machine_code_of(ptx, architecture))
    return {readable(name): item for name, item in found.items() if "6attendI" in name}


def attention_sources() -> list[Path]:
    """Return the sources of the attention kernels, one for each head size."""
    return [path for path in nvcc.kernel_sources() if re.fullmatch(r"attention_\d+", path.stem)]


def resident_blocks(emulator: Emulator, kernel: str, architecture: int) -> int:
    """Return how many blocks of a kernel `attention_model.cu` expects a multiprocessor to have."""
    match = re.fullmatch(r"attend<(\w+), (\d+), Block<(\d+), (\d+)>, (\w+)>", kernel)
    assert match is not None, kernel
    dtype = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}[match[1]]
    args = abi.AttentionArgs(dtype=abi.DTYPES[dtype], q_heads=1, kv_heads=1)
    args.head_dim = args.value_dim = int(match[2])
    args.mask.data = 16 if match[5] == "true" else None
    choice = abi.AttentionChoice(0, 1, abi.BLOCKS[f"{match[3]}by{match[4]}"], None)
    return emulator.library.moh_cuda_attention_resident_blocks(
        ctypes.byref(args), ctypes.byref(choice), ctypes.byref(abi.Device(1, architecture))
    )


def occupancy(
    emulator: Emulator, sources: list[Path], architectures: tuple[int, ...] = ARCHITECTURES
) -> dict[str, Occupancy]:
    """Return what the instances of `attend` in some sources have; of loads, the most."""
    loads: dict[str, float] = {}
    for source, architecture in product(sources, architectures):
        for kernel, found in matrix_instructions_of(source, architecture).items():
            loads[kernel] = max(loads.get(kernel, 0), found.loads_per_64_products)
    return {
        kernel: Occupancy(
            round(most, 1),
            {item: resident_blocks(emulator, kernel, item) for item in architectures},
        )
        for kernel, most in loads.items()
    }


def occupancy_table() -> dict[str, Occupancy]:
    """Return what each instance of `attend` may have at most of loads, at least of blocks."""
    return {
        kernel: Occupancy(
            load["loads_per_64_products"],
            {int(name): blocks for name, blocks in load["resident_blocks"].items()},
        )
        for kernel, load in json.loads(OCCUPANCY.read_text()).items()
    }


def table() -> dict[str, int]:
    """Return the largest number of registers that each kernel may have."""
    return json.loads(TABLE.read_text())


def write_table() -> None:
    largest: dict[str, int] = {}
    for item in measured():
        largest[item.kernel] = max(largest.get(item.kernel, 0), item.registers)
    TABLE.write_text(json.dumps(dict(sorted(largest.items())), indent=2) + "\n")


def write_occupancy(emulator: Emulator) -> None:
    found = occupancy(emulator, attention_sources())
    lines = [f"  {json.dumps(name)}: {json.dumps(asdict(found[name]))}" for name in sorted(found)]
    OCCUPANCY.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _assemble(ptx: Path, architecture: int) -> str:
    """Return what ptxas reports; kept beside the PTX, whose name tells its content."""
    kept = ptx.with_suffix(f".sm_{architecture}.txt")
    if not kept.exists():
        machine_code = str(machine_code_of(ptx, architecture))
        command = [nvcc.assembler(), "-v", f"-arch=sm_{architecture}", str(ptx), "-o", machine_code]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise nvcc.CompilationFailed(ran.stdout + ran.stderr)
        kept.write_text(ran.stderr)
    return kept.read_text()


def _read(report: str) -> Iterator[Resources]:
    for match in _KERNEL.finditer(report):
        yield Resources(
            readable(match["kernel"]),
            int(match["architecture"]),
            int(match["registers"]),
            sum(int(match[name]) for name in ("stack", "stores", "loads")),
        )


@cache
def readable(mangled: str) -> str:
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    kernel = re.sub(r"\([^()]*\)$", "", name.strip().removeprefix("void "))
    return kernel.replace("moh::cuda::", "")


if __name__ == "__main__":
    write_table()
    write_occupancy(Emulator(build(PLAIN)))
    print(f"{len(table())} kernels in {TABLE}, {len(occupancy_table())} in {OCCUPANCY}")
