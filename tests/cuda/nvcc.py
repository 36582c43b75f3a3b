"""Compiles CUDA sources to PTX. What was compiled is kept in `build/ptx/`, by content."""

import hashlib
import math
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
INCLUDES = (PLUGINS, PLUGINS / "include")
OPTIONS = ("-ptx", "-arch=compute_80", "-std=c++17")
CACHE = ROOT / "build" / "ptx"

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)


class NoCompiler(Exception):
    """nvcc was not found: the text says what to do."""


class CompilationFailed(Exception):
    """The compiler's output."""


def compiler() -> str:
    """Return nvcc's path.

    Raises:
        NoCompiler: There is none on PATH, nor in CUDA_HOME.
    """
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if path is None:
        raise NoCompiler("nvcc was not found: put CUDA's bin folder on PATH, or set CUDA_HOME.")
    return path


def kernel_sources(largest_head: float = math.inf) -> list[Path]:
    """Return the sources of the kernels, and of the kernel for each primitive.

    What is compiled for one size of heads alone is a file of its own, with the size in its name.

    Args:
        largest_head: Of which size there may be such files. Those of smaller heads come first.
    """
    launch, conformance = (PLUGINS / "cuda" / name for name in ("launch", "conformance"))
    sources = sorted([*launch.glob("*.cu"), conformance / "conformance.cu"], key=_head)
    return [source for source in sources if _head(source) <= largest_head]


def _head(source: Path) -> int:
    size = source.stem.rpartition("_")[2]
    return int(size) if size.isdecimal() else 0


def ptx_of(sources: list[Path]) -> list[str]:
    """Return the PTX of each source.

    Raises:
        CompilationFailed: One does not compile.
    """
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(ptx_of_one, sources))


def ptx_of_one(source: Path) -> str:
    """Return the PTX of a source: see `ptx_of`."""
    return _ptx_file_of(source).read_text()


def ptx_files_of(sources: list[Path]) -> list[Path]:
    """Return the files that the PTX of each source is kept in."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(_ptx_file_of, sources))


def assembler() -> str:
    """Return the path of ptxas, which comes with nvcc."""
    return str(Path(compiler()).resolve().with_name("ptxas"))


def _ptx_file_of(source: Path) -> Path:
    kept = CACHE / f"{source.stem}-{_content(source)}.ptx"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        _compile(source, kept)
    return kept


def _compile(source: Path, target: Path) -> None:
    includes = [f"-I{folder}" for folder in INCLUDES]
    partial = target.with_suffix(f".{os.getpid()}")
    command = [compiler(), *OPTIONS, *includes, str(source), "-o", str(partial)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise CompilationFailed(ran.stdout + ran.stderr)
    partial.replace(target)


def _content(source: Path) -> str:
    """Return a digest of all that the PTX of a source depends on."""
    digest = hashlib.sha256(_version().encode() + " ".join(OPTIONS).encode())
    for path in sorted(_with_includes(source)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def _with_includes(source: Path) -> set[Path]:
    """Return a source and what it includes of ours, and what that includes."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_included(path))
    return found


def _included(path: Path) -> list[Path]:
    names = _INCLUDE.findall(path.read_text())
    candidates = [folder / name for name in names for folder in (path.parent, *INCLUDES)]
    return [candidate.resolve() for candidate in candidates if candidate.is_file()]


@cache
def _version() -> str:
    return subprocess.run(
        [compiler(), "--version"], capture_output=True, text=True, check=True
    ).stdout
