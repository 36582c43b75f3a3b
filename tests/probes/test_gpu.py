"""The driver, simulated by a library of its name."""

from __future__ import annotations

import ctypes

import pytest

from moh_deploy.probes.ask import Failed
from moh_deploy.probes.gpu import Gpu, GpuFacts, probe_gpu
from tests.probes.conftest import Fakes

_DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int* version) { *version = 13010; return 0; }
int cuDeviceGetCount(int* count) { *count = COUNT; return 0; }
int cuDeviceGet(int* device, int index) { *device = 10 + index; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  strncpy(name, device == 10 ? "NVIDIA L4" : "NVIDIA B200", size); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 24000000000ull; return 0; }
int cuDeviceGetAttribute(int* value, int which, int device) {
  *value = which == 75 ? (device == 10 ? 8 : 10) : which == 76 ? (device == 10 ? 9 : 0) : -1;
  return 0; }
int cuGetErrorName(int status, const char** name) { *name = "CUDA_ERROR_NO_DEVICE"; return 0; }
"""


def _driver(fakes: Fakes, *, status: int = 0, count: int = 2) -> None:
    code = _DRIVER.replace("INIT", str(status)).replace("COUNT", str(count))
    fakes.library("libcuda.so.1", code)


def test_gpus_are_what_the_driver_says(fakes: Fakes):
    _driver(fakes)
    fakes.program("nvidia-smi", "echo 590.12")
    assert probe_gpu() == GpuFacts(
        "590.12",
        "13.1",
        (Gpu("NVIDIA L4", 89, 24_000_000_000), Gpu("NVIDIA B200", 100, 24_000_000_000)),
    )


@pytest.mark.parametrize("script", ["exit 9", "kill -SEGV $$", "true"])
def test_a_broken_nvidia_smi_hides_no_gpu(fakes: Fakes, script: str):
    _driver(fakes, count=1)
    fakes.program("nvidia-smi", script)
    found = probe_gpu()
    assert isinstance(found, GpuFacts)
    assert found.driver is None
    assert [one.name for one in found.gpus] == ["NVIDIA L4"]


def test_a_driver_that_fails_says_how(fakes: Fakes):
    _driver(fakes, status=100)
    found = probe_gpu()
    assert isinstance(found, Failed)
    assert found.why == "cuInit of the driver failed with CUDA_ERROR_NO_DEVICE (100)"
    assert "nvidia-smi" in str(found.fix)


def test_a_driver_without_gpus_is_none(fakes: Fakes):
    _driver(fakes, count=0)
    found = probe_gpu()
    assert isinstance(found, Failed)
    assert found.why == "the NVIDIA driver finds no GPU"


def test_a_driver_that_crashes_is_a_finding(fakes: Fakes):
    fakes.library("libcuda.so.1", "int cuInit(unsigned f) { return *(volatile int*)0; }")
    found = probe_gpu()
    assert isinstance(found, Failed)
    assert "SIGSEGV" in found.why


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
