from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from moh_deploy.machine.gpu import DeviceCode, device_code
from tests.cuda.nvcc import NoCompiler, compiler


def fat_binary(*entries: tuple[int, int, int]) -> bytes:
    """Return a fat binary of entries: kind, architecture, bytes of code."""
    code = b"".join(
        struct.pack("<HHIQ12xI32x", kind, 257, 64, size, arch) + b"\x50" * size
        for kind, arch, size in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(code)) + code


def test_entries_of_several_binaries_are_read(tmp_path: Path):
    library = tmp_path / "library.so"
    first = fat_binary((2, 80, 24), (2, 86, 8), (1, 120, 40))
    library.write_bytes(b"\x7fELF..." + first + b"-" * 5 + fat_binary((2, 80, 0)) + b"-" * 80)
    assert device_code(library) == DeviceCode((80, 86), (120,))


def test_a_library_cut_off_is_read_to_its_end(tmp_path: Path):
    library = tmp_path / "library.so"
    library.write_bytes(fat_binary((2, 80, 8), (2, 86, 8))[:100])
    assert device_code(library).machine in ((80,), ())


def test_other_files_have_no_code():
    assert device_code(Path(__file__)) == DeviceCode((), ())


def test_what_nvcc_compiles_for_is_found(tmp_path: Path):
    try:
        nvcc = compiler()
    except NoCompiler as missing:
        pytest.skip(str(missing))
    (tmp_path / "k.cu").write_text("__global__ void k(float* x) { *x = 1; }\n")
    targets = ["-gencode=arch=compute_86,code=sm_86"]
    targets += ["-gencode=arch=compute_90,code=[sm_90,compute_90]"]
    command = [nvcc, *targets, "-shared", "-Xcompiler=-fPIC", "k.cu", "-o", "libk.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert device_code(tmp_path / "libk.so") == DeviceCode((86, 90), (90,))


@pytest.mark.parametrize(
    ("machine", "ptx", "gpu", "runs"),
    [
        ((80, 86), (), 80, True),
        ((80, 86), (), 89, True),
        ((86,), (), 80, False),
        ((80,), (), 90, False),
        ((80,), (80,), 90, True),
        ((100,), (120,), 103, True),
        ((100,), (120,), 110, False),
        ((), (), 80, False),
    ],
)
def test_a_gpu_runs_machine_code_of_its_major_version_and_older_ptx(
    machine: tuple[int, ...], ptx: tuple[int, ...], gpu: int, runs: bool
):
    assert DeviceCode(machine, ptx).runs_on(gpu) is runs
