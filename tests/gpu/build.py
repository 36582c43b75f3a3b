"""Builds the kernels for one GPU with nvcc alone: neither CMake nor anything else is needed."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
BUILDS = ROOT / "build" / "gpu"

_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC", "-I", str(PLUGINS))


class BuildFailed(Exception):
    """The compiler's output."""


def sources() -> list[Path]:
    """Return the .cu files of plugins/cuda/sources.cmake."""
    text = (PLUGINS / "cuda" / "sources.cmake").read_text()
    return [PLUGINS / "cuda" / name for name in re.findall(r"^\s+(\S+\.cu)$", text, re.MULTILINE)]


def build(compute_capability: int) -> Path:
    """Compile what has changed since the last time, and return the library's path.

    Args:
        compute_capability: Of the card: 80, 90, ...
    """
    folder = BUILDS / f"sm_{compute_capability}"
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(cpu_count()) as pool:
        objects = list(pool.map(lambda one: _compile(one, folder, compute_capability), sources()))
    library = folder / "libmoh_cuda.so"
    link = ["nvcc", "-shared", "-cudart", "static", "-o", str(library), *map(str, objects)]
    _run([*link, f"-arch=sm_{compute_capability}"])
    return library


def _compile(source: Path, folder: Path, compute_capability: int) -> Path:
    target = folder / f"{source.parent.name}-{source.stem}.o"
    newest = max(path.stat().st_mtime for path in PLUGINS.rglob("*") if path.is_file())
    if not target.is_file() or target.stat().st_mtime < newest:
        include = ["-I", str(PLUGINS / "include"), f"-arch=sm_{compute_capability}"]
        _run(["nvcc", *_FLAGS, *include, "-c", str(source), "-o", str(target)])
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
