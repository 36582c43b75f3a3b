"""Builds the emulated library with a bug in it: compiles what the bug touches, and links that with
what the build without a bug has compiled.
"""

import json
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.cuda.libraries import BUILDS, PLUGINS, BuildFailed, Variant, build
from tests.cuda.mutations.mutation import Mutation
from tests.cuda.processes import Verdict, run_cases
from tests.kept_builds import COMPILER

_CUDA = PLUGINS / "cuda"
# Objects of the library, and not of another one of the same build.
_TARGETS = ("moh_emulator.dir", "moh_cuda_emulated.dir")
# Behind the options of the build: nobody reads lines or warnings.
_QUICKLY = ("-g0", "-w")


def try_out(mutation: Mutation, folder: Path, *, timeout_s: float = 120) -> Verdict:
    """Plant a bug in `folder` and run the cases that must notice."""
    library = build_planted(mutation, folder)
    options = ("--tiles", "--stop", *mutation.options, "--match", mutation.match())
    return run_cases(library, mutation.variant, *options, timeout_s=timeout_s)


def build_planted(mutation: Mutation, folder: Path) -> Path:
    """Build the library with a bug, and return its path.

    Raises:
        TextNotFound: The bug does not fit the sources.
        BuildFailed: It does not compile.
    """
    planted = folder / "cuda" / mutation.file
    planted.parent.mkdir(parents=True)
    planted.write_text(mutation.plant((_CUDA / mutation.file).read_text()))
    kept = dict(_objects(mutation.variant))
    changed = []
    for unit in mutation.units:
        compilation = kept.pop(_CUDA / "launch" / f"{unit}.cu")
        changed.append(_compile(compilation, folder))
    return _link([*changed, *(item.output for item in kept.values())], mutation.variant, folder)


@dataclass(frozen=True)
class _Compilation:
    """How the build without a bug compiles a source."""

    source: Path
    folder: Path
    command: tuple[str, ...]

    @property
    def output(self) -> Path:
        return self.folder / self.command[self.command.index("-o") + 1]


@cache
def _objects(variant: Variant) -> tuple[tuple[Path, _Compilation], ...]:
    """Build the library without a bug, and return what it is made of, by source."""
    build(variant)
    entries = json.loads((BUILDS / variant.name / "compile_commands.json").read_text())
    compilations = [
        _Compilation(
            Path(entry["file"]), Path(entry["directory"]), tuple(shlex.split(entry["command"]))
        )
        for entry in entries
        if any(target in entry["command"] for target in _TARGETS)
    ]
    return tuple((compilation.source, compilation) for compilation in compilations)


def _compile(compilation: _Compilation, folder: Path) -> Path:
    """Compile as the build does, but look for sources in `folder` first."""
    own = folder / "cuda" / compilation.source.relative_to(_CUDA)
    source = own if own.exists() else compilation.source
    output = folder / f"{compilation.source.stem}.o"
    compiler, *options = compilation.command[: compilation.command.index("-o")]
    command = [compiler, f"-I{folder}", *options, *_QUICKLY, "-o", str(output), "-c", str(source)]
    _run(command, compilation.folder)
    return output


def _link(objects: list[Path], variant: Variant, folder: Path) -> Path:
    """Link as the build does; what was compiled anew comes first, and wins where both have it."""
    library = folder / "libmoh_cuda_emulated.so"
    sanitize = [f"-fsanitize={variant.sanitize}"] if variant.sanitize else []
    command = [COMPILER, "-shared", "-Wl,-Bsymbolic", *sanitize, "-o", str(library)]
    _run([*command, *map(str, objects), "-ldl"], folder)
    return library


def _run(command: list[str], folder: Path) -> None:
    ran = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise BuildFailed(ran.stdout[-4000:])
