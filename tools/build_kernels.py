"""Build the CPU kernels and put the library into the package, or record why it was not built.

Runs as part of `pip install`, and by itself after a change: `python tools/build_kernels.py`. It
needs nothing but Python's standard library. `MOH_DEPLOY_BUILD_KERNELS` says what to do: `auto`
(default) builds where everything needed is there, `off` builds nothing, `require` fails where there
would be no library.

For a target, which wheels are made for, zig (`pip install ziglang`) is the compiler, on any Linux.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("moh_deploy", "native")
LIBRARY_NAME = "libmoh_ort_cpu.so"
RECORD_NAME = "build.json"
LOG_NAME = "build.log"
# What wheels are made for: Linux of an architecture, with this glibc or a newer one.
TARGETS = ("x86_64", "aarch64")
GLIBC = "2.28"
NEEDED = (
    "on Debian 13, Ubuntu 25.04 and newer: apt install cmake make g++ libonnxruntime-dev libhwy-dev"
)


class NoKernels(Exception):
    """There will be no library.

    Args:
        reason: Why, as half a sentence.
        log: What the compiler said, where that is the reason.
    """

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


def build_kernels(folder: Path, target: str | None = None) -> bool:
    """Build the library and put it into `folder`, in place of an older one.

    Without a library the reason is printed on stderr and kept in `folder`, for the reports.

    Args:
        target: One of TARGETS; None: this machine. A library for a target is required.

    Returns:
        Whether there is a library.

    Raises:
        NoKernels: It was not built, and `MOH_DEPLOY_BUILD_KERNELS` is `require`; or it has
            another value than those above.
    """
    mode = "require" if target else os.environ.get("MOH_DEPLOY_BUILD_KERNELS", "auto")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _build(mode, target, folder / LIBRARY_NAME)
    except NoKernels as failure:
        (folder / LIBRARY_NAME).unlink(missing_ok=True)
        _record(folder, failure.reason, failure.log)
        if mode not in ("auto", "off"):
            raise
        hint = "" if mode == "off" else f"; {NEEDED}"
        print(f"moh-deploy: built without CPU kernels: {failure.reason}{hint}", file=sys.stderr)
        return False
    _record(folder, None, "")
    return True


def _build(mode: str, target: str | None, into: Path) -> None:
    """Put a new library in its place."""
    if mode not in ("auto", "off", "require"):
        raise NoKernels(f"MOH_DEPLOY_BUILD_KERNELS is '{mode}', expected auto, off or require")
    if mode == "off":
        raise NoKernels("switched off by MOH_DEPLOY_BUILD_KERNELS=off")
    if not sys.platform.startswith("linux"):
        raise NoKernels(f"they are built on Linux only, this is {sys.platform}")
    import fcntl  # which Windows does not have

    cmake = shutil.which("cmake")
    if cmake is None:
        raise NoKernels("cmake was not found")
    lock_path = ROOT / "build" / "kernels.lock"
    lock_path.parent.mkdir(exist_ok=True)
    with lock_path.open("w") as lock:
        # `pip install` may run beside this: who comes second finds everything compiled, and removes
        # nothing that is still to be copied.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _replace(_compile(cmake, target), into)


def _compile(cmake: str, target: str | None) -> Path:
    name = f"kernels-{target}" if target else "kernels"
    source, work = ROOT / "plugins", _work_folder(ROOT / "plugins", ROOT / "build" / name)
    configure = [cmake, "-S", str(source), "-B", str(work), "-DCMAKE_BUILD_TYPE=Release"]
    if target:
        # What was begun by a zig of another environment cannot go on; zig keeps what it compiled.
        shutil.rmtree(work, ignore_errors=True)
        configure += _by_zig(source, target)
    status, output = _run(configure)
    if status:
        shutil.rmtree(work, ignore_errors=True)  # or CMake would remember what it did not find
        raise NoKernels(_missing(output), output)
    jobs = str(len(os.sched_getaffinity(0)))
    status, output = _run([cmake, "--build", str(work), "--parallel", jobs])
    if status:
        # Or CMake would keep the flags that it was configured with.
        (work / "CMakeCache.txt").unlink(missing_ok=True)
        raise NoKernels(f"the compiler failed: {_first_error(output)}", output)
    return work / LIBRARY_NAME


def _by_zig(source: Path, target: str) -> list[str]:
    """Return CMake's options to compile for a target."""
    if target not in TARGETS:
        raise NoKernels(f"the target is '{target}', expected {' or '.join(TARGETS)}")
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise NoKernels("zig was not found: pip install ziglang")
    options = [f"-DMOH_ZIG={Path(found.origin).with_name('zig')}"]
    options += [f"-DMOH_ZIG_TARGET={target}-linux-gnu.{GLIBC}"]
    options += [f"-DCMAKE_TOOLCHAIN_FILE={source / 'zig.cmake'}"]
    return [*options, *(("-G", "Ninja") if shutil.which("ninja") else ())]


def _work_folder(source: Path, work: Path) -> Path:
    """Return `work`, emptied if CMake used it for other sources: it would refuse to go on."""
    cache = work / "CMakeCache.txt"
    if cache.is_file() and f"CMAKE_HOME_DIRECTORY:INTERNAL={source}\n" not in cache.read_text():
        shutil.rmtree(work)
    return work


def _run(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def _missing(output: str) -> str:
    """Return what CMake found missing. Our own messages name it; CMake breaks them into lines."""
    if "moh-deploy: " in output:
        message = output.split("moh-deploy: ", 1)[1].split("\n\n", 1)[0]
        return " ".join(message.split()).rstrip(".")
    if "No CMAKE_CXX_COMPILER could" in output or "Could not find compiler" in output:
        return "no C++ compiler was found"
    if "unable to find a build program" in output:
        return "make was not found"
    return f"CMake failed: {_first_error(output)}"


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")


def _replace(library: Path, target: Path) -> None:
    """Put the library in place in one step: a process may have the old one in use."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.copyfile(library, partial)
    partial.replace(target)


def _record(folder: Path, reason: str | None, log: str) -> None:
    (folder / RECORD_NAME).write_text(json.dumps({"reason": reason}) + "\n", encoding="utf-8")
    (folder / LOG_NAME).unlink(missing_ok=True)
    if log:
        (folder / LOG_NAME).write_text(log, encoding="utf-8")


def main() -> None:
    try:
        built = build_kernels(ROOT / PACKAGE)
    except NoKernels as failure:
        sys.exit(f"moh-deploy: no CPU kernels: {failure.reason}; {NEEDED}")
    if built:
        print(f"built {PACKAGE / LIBRARY_NAME}")


if __name__ == "__main__":
    main()
