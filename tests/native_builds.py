"""Builds all native code of the tests before pytest starts, on every core.

    python -m tests.native_builds [--nightly]

What is there already from the same sources is not built again (tests/kept_builds.py). Tests build
what they miss, too: then others wait for it, or run beside it on cores that are taken.
"""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cuda import nvcc, resources
from tests.cuda.libraries import ADDRESS, PLAIN, THREAD, NoHeaders, build
from tests.cuda.test_bank_conflicts import counting_library
from tests.cuda.test_emulator import library_without_assembly
from tests.cuda.trt import builds
from tests.openvino_extension import built_extension
from tests.plugins.test_sanitizers import sanitized_library
from tests.serving.triton.triton_environment import server_or_skip

# Those that take longest come first.
PUSH: dict[str, Callable[[], object]] = {
    "kernels, compiled to PTX": lambda: nvcc.ptx_of(nvcc.kernel_sources(largest_head=64)),
    "emulated kernels, and the plugin on them": lambda: builds.plugin_on_emulated(build(PLAIN)),
    "TensorRT plugin": builds.plugin_on_fakes,
    "harness of the plugin": builds.harness,
}
NIGHTLY: dict[str, Callable[[], object]] = {
    "emulated kernels for AddressSanitizer": lambda: build(ADDRESS),
    "emulated kernels for ThreadSanitizer": lambda: build(THREAD),
    "emulated kernels that count bank conflicts": counting_library,
    "emulator without assembly": library_without_assembly,
    "CPU kernels for sanitizers": sanitized_library,
    "kernels, assembled for every architecture": resources.measured,
    "kernels for larger heads, compiled to PTX": lambda: nvcc.ptx_of(nvcc.kernel_sources()),
    "extension of OpenVINO": built_extension,
    "Triton's server": server_or_skip,
}
MISSING = (NoHeaders, nvcc.NoCompiler, pytest.skip.Exception)


def main(arguments: list[str]) -> None:
    """Build in parallel; what this machine lacks something for is left to the tests to skip."""
    wanted = PUSH | (NIGHTLY if "--nightly" in arguments else {})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_report, wanted, wanted.values()))


def _report(name: str, make: Callable[[], object]) -> None:
    start = time.monotonic()
    try:
        make()
    except MISSING as reason:
        print(f"{name}: left out: {reason}", flush=True)
    else:
        print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
