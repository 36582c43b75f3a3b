"""Which instruction sets the library offers: those that the operating system says this machine has.

The library asks the processor itself, whatever it was compiled by.
"""

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moh_deploy.runtime.kernel_use import instruction_sets
from tests.kernel_library import required_library
from tests.nightly import nightly

# Flags of /proc/cpuinfo that a set needs beside those of the sets behind it, best first.
NEEDS = {
    "amx_bf16": "amx_bf16 amx_tile",
    "avx512_bf16": "avx512_bf16 avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg"
    " avx512_vpopcntdq vpclmulqdq vaes gfni",
    "avx512": "avx512f avx512cd avx512vl avx512dq avx512bw",
    "avx2": "avx2 fma f16c bmi1 bmi2 pclmulqdq aes",
}


def sets_of_this_machine() -> list[str]:
    """Return what a library for this machine should offer, best first."""
    flags = re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    there = set(flags[0].split()) if flags else set()
    offered = ["baseline"]
    for name, needed in reversed(NEEDS.items()):
        if not set(needed.split()) <= there:
            break
        offered.insert(0, name)
    return offered


@pytest.mark.skipif(
    platform.system() != "Linux", reason="what the processor has is read from /proc"
)
def test_library_offers_all_that_this_machine_has():
    assert instruction_sets(required_library()) == sets_of_this_machine()


@nightly
@pytest.mark.skipif(
    shutil.which("cmake") is None or platform.machine() != "x86_64",
    reason="for CMake on x86-64",
)
def test_flags_of_a_user_leave_no_set_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Highway compiles no set below the one that all code may use, and the library names them all.
    monkeypatch.setenv("CXXFLAGS", "-O2 -march=znver4")
    plugins = Path(__file__).parents[2] / "plugins"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    configure = ["cmake", "-S", str(plugins), "-B", str(tmp_path), *options]
    subprocess.run(configure, check=True, capture_output=True)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    (kernels,) = (
        command for command in commands if command["file"].endswith("cpu/attention/attention.cc")
    )
    assert re.findall(r"-march=(\S+)", kernels["command"]) == ["znver4", "x86-64"]
