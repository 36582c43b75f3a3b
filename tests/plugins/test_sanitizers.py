"""The library, built with sanitizers, touches no memory but its tensors and does nothing undefined.

AddressSanitizer sees neither what is within a thread's scratch memory nor reads of memory that was
not written; UndefinedBehaviorSanitizer sees what is wrong with the arithmetic.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kept_builds import COMPILER, build_once, digest_of
from tests.nightly import nightly

pytestmark = nightly  # a build of its own, and all cases on it

ROOT = Path(__file__).resolve().parents[2]
# Kept, so that a second run compiles only what has changed.
BUILD = ROOT / "build" / "plugins-sanitized"


def _run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _runtime(name: str) -> str:
    """Return the path of a sanitizer's runtime library, or skip where the compiler has none."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no C++ compiler: {COMPILER}")
    path = _run([COMPILER, f"-print-file-name={name}"]).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"{COMPILER} has no {name}")
    return path


def runtimes() -> list[str]:
    """Return the paths of what a process must load before the library, or skip."""
    return [_runtime("libasan.so"), _runtime("libubsan.so")]


def sanitized_library() -> Path:
    """Build the library with sanitizers, or skip where that cannot be done."""
    runtimes()
    if shutil.which("cmake") is None:
        pytest.skip("cmake was not found")
    # Unoptimised: quicker to compile by far, and no access is optimised away.
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DMOH_SANITIZE=address,undefined"]

    def compile_all() -> None:
        configured = _run(["cmake", "-S", "plugins", "-B", str(BUILD), *options])
        if "moh-deploy: " in configured.stdout:
            shutil.rmtree(BUILD)  # or CMake would remember what it did not find
            pytest.skip(" ".join(configured.stdout.split("moh-deploy: ")[1].split()))
        assert configured.returncode == 0, configured.stdout
        built = _run(["cmake", "--build", str(BUILD), "--parallel", "2"])
        assert built.returncode == 0, built.stdout

    sources = [path for path in (ROOT / "plugins").rglob("*") if path.is_file()]
    content = digest_of(sources, options)
    return build_once(BUILD / "libmoh_ort_cpu.so", content, compile_all)


@pytest.fixture(scope="module")
def library() -> Path:
    return sanitized_library()


def test_sanitizers_find_nothing(library: Path):
    ran = _run(
        [sys.executable, "-m", "tests.plugins.run_everything", str(library)],
        LD_PRELOAD=" ".join(runtimes()),
        ASAN_OPTIONS="detect_leaks=0",  # Python's and ONNX Runtime's
        UBSAN_OPTIONS="print_stacktrace=1",
        OMP_NUM_THREADS="1",
    )
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert "baseline: " in ran.stdout


def test_library_is_instrumented(library: Path):
    code = library.read_bytes()
    assert b"__asan_report_load" in code
    assert b"__ubsan_handle" in code
