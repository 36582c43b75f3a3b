"""Builds the kernels for one GPU with nvcc alone: neither CMake nor anything else is needed."""

import hashlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from os import cpu_count
from pathlib import Path

from tests.cuda import nvcc

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
BUILDS = ROOT / "build" / "gpu"

_FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC")
_INCLUDES = ("-I", str(PLUGINS), "-I", str(PLUGINS / "include"))
_SECONDS_EACH = 300


class BuildFailed(Exception):
    """There is no compiler, or the compiler's output."""


_WITHOUT_TRITON = PLUGINS / "cuda" / "launch" / "triton_code_none.cu"
_TRITON_SOURCES = PLUGINS / "cuda" / "triton"


def sources() -> list[Path]:
    """Return the .cu files of plugins/cuda/sources.cmake."""
    text = (PLUGINS / "cuda" / "sources.cmake").read_text()
    return [PLUGINS / "cuda" / name for name in re.findall(r"^\s+(\S+\.cu)$", text, re.MULTILINE)]


def triton_code(folder: Path, content: str) -> tuple[Path, str]:
    """Return the source with the kernels of Triton, written where Triton is, as `make cuda` does.

    A Triton that is missing, too old or broken costs its kernels, and not the run: then it is the
    source without any, with the reason.
    """
    if find_spec("triton") is None:
        return _WITHOUT_TRITON, "Triton is not installed"
    made = folder / "triton_code.cu"
    compiler = [sys.executable, "-B", str(_TRITON_SOURCES / "compile.py")]
    try:
        _run_unless_made(compiler, made, content, option="--output")
    except BuildFailed as error:
        return _WITHOUT_TRITON, str(error)
    return made, ""


def target(compute_capability: int) -> str:
    """Return nvcc's option for one GPU: what ships, without the other GPUs' code.

    The code is made from the PTX of compute_80, as plugins/cuda/nvcc.cmake has it.
    """
    return f"-gencode=arch=compute_80,code=[sm_{compute_capability},compute_80]"


def build(compute_capability: int) -> tuple[Path, str]:
    """Compile what has changed since the last time.

    Returns:
        The library, and why it has no kernel of Triton; empty if it has.

    Args:
        compute_capability: Of the card: 80, 90, ...

    Raises:
        BuildFailed: There is no nvcc, or something does not compile.
    """
    try:
        compiler = nvcc.compiler()
    except nvcc.NoCompiler as error:
        raise BuildFailed(
            f"{error} Or bring a library along that was built elsewhere: --library FILE"
            " (`make cuda` builds build/cuda/libmoh_cuda.so for all GPUs)."
        ) from error
    folder = BUILDS / f"sm_{compute_capability}"
    folder.mkdir(parents=True, exist_ok=True)
    content = _content(compute_capability)
    command = [compiler, *_FLAGS, *_INCLUDES, target(compute_capability)]
    with ThreadPoolExecutor(cpu_count()) as pool:
        # Triton compiles beside nvcc, and only then is there something to compile.
        triton = pool.submit(triton_code, folder, content)
        others = [source for source in sources() if source != _WITHOUT_TRITON]
        compiled = pool.map(lambda source: _compile(source, folder, command, content), others)
        code, without_triton = triton.result()
        objects = [str(path) for path in (*compiled, _compile(code, folder, command, content))]
    library = folder / "libmoh_cuda.so"
    linked = [compiler, "-shared", "-cudart", "static", target(compute_capability), *objects]
    _run_unless_made(linked, library, f"{content} {without_triton}")
    return library, without_triton


def _compile(source: Path, folder: Path, command: list[str], content: str) -> Path:
    made = folder / f"{source.parent.name}-{source.stem}.o"
    _run_unless_made([*command, "-c", str(source)], made, content)
    return made


def _run_unless_made(command: list[str], made: Path, content: str, *, option: str = "-o") -> None:
    """Run a compiler unless it has made the file from the same content before."""
    stamp = made.with_suffix(".from")
    if made.is_file() and stamp.is_file() and stamp.read_text() == content:
        return
    stamp.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [*command, option, str(made)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_SECONDS_EACH,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"not done after {_SECONDS_EACH} s: {' '.join(command)}") from error
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}\n{done.stdout[-4000:]}")
    stamp.write_text(content)


def _content(compute_capability: int) -> str:
    """Return a digest of all sources and options: copies have other times than their originals."""
    digest = hashlib.sha256(repr((_FLAGS, target(compute_capability))).encode())
    folders = [PLUGINS / "cuda", PLUGINS / "include"]
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file():
            digest.update(f"\n{path.relative_to(PLUGINS)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
