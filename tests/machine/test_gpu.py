"""The driver, simulated by a library of its name."""

import ctypes
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moh_deploy import __version__, native
from moh_deploy.machine.ask import Failed
from moh_deploy.machine.gpu import (
    DeviceCode,
    GpuFacts,
    LibraryFacts,
    device_code,
    probe_gpu,
    probe_ort_cuda,
)
from moh_deploy.machine.tensorrt import probe_plugin
from moh_deploy.system.nvidia_driver import Gpu
from tests.cuda.nvcc import NoCompiler, compiler
from tests.fakes import Fakes


def test_gpus_are_what_the_driver_says(fakes: Fakes):
    fakes.driver()
    fakes.program("nvidia-smi", "echo 590.12")
    assert probe_gpu() == GpuFacts(
        "590.12",
        "13.1",
        (Gpu("NVIDIA L4", 89, 24_000_000_000), Gpu("NVIDIA B200", 100, 24_000_000_000)),
    )


@pytest.mark.parametrize("script", ["exit 9", "kill -SEGV $$", "true"])
def test_a_broken_nvidia_smi_hides_no_gpu(fakes: Fakes, script: str):
    fakes.driver(count=1)
    fakes.program("nvidia-smi", script)
    found = probe_gpu()
    assert isinstance(found, GpuFacts)
    assert found.driver is None
    assert [item.name for item in found.gpus] == ["NVIDIA L4"]


def no_library(fakes: Fakes) -> None:
    (fakes.folder / "libcuda.so.1").write_text("no library")


CRASHING = "int cuInit(unsigned f) { return *(volatile int*)0; }"


@pytest.mark.parametrize(
    ("arrange", "why"),
    [
        (lambda fakes: fakes.driver(status=100), "^cuInit of the driver failed with CUDA_ERROR_NO"),
        (lambda fakes: fakes.driver(count=0), "^the NVIDIA driver finds no GPU$"),
        (no_library, "no NVIDIA driver: .*(file too short|invalid ELF header)"),
        (lambda fakes: fakes.library("libcuda.so.1", CRASHING), "SIGSEGV"),
    ],
    ids=["fails", "no GPU", "no library", "crashes"],
)
def test_a_driver_that_is_broken_says_how(
    fakes: Fakes, arrange: Callable[[Fakes], object], why: str
):
    arrange(fakes)
    found = probe_gpu()
    assert isinstance(found, Failed)
    assert re.search(why, found.why)
    assert "nvidia-smi" in str(found.fix)


def test_this_machine():
    """Independently: whether the loader finds the driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        found = probe_gpu()
        assert isinstance(found, Failed)
        assert found.why == "no NVIDIA driver: libcuda.so.1 was not found"
    else:
        pytest.skip("there is a driver")


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


def test_a_library_cut_off_and_other_files_are_read_to_their_ends(tmp_path: Path):
    library = tmp_path / "library.so"
    library.write_bytes(fat_binary((2, 80, 8), (2, 86, 8))[:100])
    assert device_code(library).machine in ((80,), ())
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


_RETURNS = 'const char* moh_{name}_version() {{ return "{version}"; }}'


def _plugin(fakes: Fakes, version: str = __version__, more: str = "") -> Path:
    code = _RETURNS.format(name="plugin", version=version) + more
    return fakes.library("libmoh_plugin.so", code)


KERNELS = 'const char* moh_plugin_triton_kernels() { return "sm_90 float16 64\\nsm_100 x 1\\n"; }'


@pytest.mark.parametrize(
    ("more", "triton"), [("", ()), (KERNELS, ("sm_90 float16 64", "sm_100 x 1"))]
)
def test_one_of_this_version_is_loaded_and_says_its_kernels(
    fakes: Fakes, more: str, triton: tuple[str, ...]
):
    path = _plugin(fakes, more=more)
    assert probe_plugin(path) == LibraryFacts(path, DeviceCode((), ()), triton=triton)


def test_the_installed_one_is_meant(fakes: Fakes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "FOLDER", fakes.folder)
    missing = probe_plugin()
    assert isinstance(missing, Failed)
    assert missing.why == f"there is no libmoh_plugin.so in {fakes.folder}"
    assert "make plugin" in str(missing.fix)
    _plugin(fakes)
    assert isinstance(probe_plugin(), LibraryFacts)


CRASH = "\n#include <stdlib.h>\n__attribute__((constructor)) void load() { abort(); }"


def _text_file(fakes: Fakes) -> Path:
    path = fakes.folder / "text.so"
    path.write_text("no library")
    return path


@pytest.mark.parametrize(
    ("arrange", "why"),
    [
        (lambda fakes: _plugin(fakes, "0.0.7"), f"to moh-deploy 0.0.7, this is {__version__}"),
        (lambda fakes: fakes.library("libother.so", "int a;"), "no function moh_plugin_version"),
        (_text_file, "OSError: "),
        (lambda fakes: _plugin(fakes, more=CRASH), "SIGABRT"),
    ],
    ids=["another version", "another library", "no library", "crashes"],
)
def test_something_else_is_refused(fakes: Fakes, arrange: Callable[[Fakes], Path], why: str):
    found = probe_plugin(arrange(fakes))
    assert isinstance(found, Failed)
    assert why in found.why


def test_the_library_for_onnx_runtime_is_registered(fakes: Fakes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "FOLDER", fakes.folder)
    code = _RETURNS.format(name="ort_cuda", version=__version__)
    fakes.library("libmoh_ort_cuda.so", code)
    refused = probe_ort_cuda()
    assert isinstance(refused, Failed)
    assert "RegisterCustomOps" in refused.why
    accepting = code + "\nvoid* RegisterCustomOps(void* options, void* api) { return 0; }"
    fakes.library("libmoh_ort_cuda.so", accepting)
    assert isinstance(probe_ort_cuda(), LibraryFacts)
