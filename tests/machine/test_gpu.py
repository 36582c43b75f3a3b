"""The driver, simulated by a library of its name."""

from __future__ import annotations

import ctypes

import pytest

from moh_deploy.machine.ask import Failed
from moh_deploy.machine.gpu import GpuFacts, probe_gpu
from moh_deploy.system.nvidia_driver import Gpu
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
    assert [one.name for one in found.gpus] == ["NVIDIA L4"]


def test_a_driver_that_fails_says_how(fakes: Fakes):
    fakes.driver(status=100)
    found = probe_gpu()
    assert isinstance(found, Failed)
    assert found.why == "cuInit of the driver failed with CUDA_ERROR_NO_DEVICE (100)"
    assert "nvidia-smi" in str(found.fix)


def test_a_driver_without_gpus_is_none(fakes: Fakes):
    fakes.driver(count=0)
    found = probe_gpu()
    assert isinstance(found, Failed)
    assert found.why == "the NVIDIA driver finds no GPU"


def test_a_driver_that_cannot_be_loaded_says_why(fakes: Fakes):
    (fakes.folder / "libcuda.so.1").write_text("no library")
    found = probe_gpu()
    assert isinstance(found, Failed)
    assert "no NVIDIA driver: " in found.why
    assert "file too short" in found.why or "invalid ELF header" in found.why


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
