"""The model that a package was made from, as measuring it needs it: no word of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.fresh_run import FreshTask
from moh_deploy.system.npz import Array


class Original(Protocol):
    """An original; `moh_deploy.load_original` returns one."""

    @property
    def sha256(self) -> str | None:
        """Digest of its checkpoint; None for a model in memory."""

    @property
    def runtime(self) -> str:
        """Name and version of its framework."""

    def run(self, arguments: Sequence[Array]) -> list[Array]:
        """Return its outputs, in order, of its positional arguments."""

    def bound(self, arguments: Sequence[Array]) -> Callable[[], object]:
        """Return a call that runs it on these arguments: to be timed."""

    def on_threads(self, threads: int | None) -> AbstractContextManager[None]:
        """Let it use so many threads meanwhile; None for its runtime's own choice."""

    def write_onnx(self, path: Path, package: OnnxPackage) -> None:
        """Export it as its framework does by itself, for the sizes that a package takes."""

    def fresh_task(self, inputs: Path, threads: int | None) -> FreshTask | None:
        """Return what loads and runs it in a process of its own; None if that cannot be."""
