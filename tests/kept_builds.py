"""Keeps what tests compile in `build/`, by what it was compiled from: nothing is built twice."""

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILDS = ROOT / "build"
COMPILER = os.environ.get("CXX", "c++")


def build_once(target: Path, content: str, build: Callable[[], None]) -> Path:
    """Return a file of a build folder, built unless it was built from the same content before.

    Processes that want the same file wait for the one that builds it.

    Args:
        target: What `build` makes in its folder.
        content: A digest of all that it depends on: see `digest_of`.
    """
    stamp = target.with_name(f".{target.name}-built-from")
    with _alone(target.parent):
        if not (target.exists() and stamp.exists() and stamp.read_text() == content):
            stamp.unlink(missing_ok=True)
            build()
            stamp.write_text(content)
    return target


def digest_of(files: Iterable[Path], options: Iterable[str]) -> str:
    """Return a digest of files by name and content, of options, and of the compiler's version."""
    digest = hashlib.sha256("\n".join([compiler_version(), *options]).encode())
    for path in sorted(files):
        digest.update(f"\n{path.name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def compiler_version() -> str:
    """Return what the C++ compiler says of itself; empty where there is none."""
    try:
        ran = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return ran.stdout


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes, and other threads, out of a build folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
