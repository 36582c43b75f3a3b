from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import onnx

from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.system.npz import Array
from tests.handmade_package import model


@dataclass
class FakeOriginal:
    """An original model that computes `factor * x`, without PyTorch.

    Attributes:
        threads: What it was to run on, while it was.
        runs: How often what it bound was called.
    """

    factor: float = 1.0
    sha256: str | None = None
    name: str = "original model"
    runtime: str = "PyTorch 1"
    threads: list[int | None] = field(default_factory=list)
    runs: int = 0

    def called_by(self, manifest: Manifest) -> Self:
        return self

    def run(self, arguments: Sequence[Array]) -> list[Array]:
        (x,) = arguments
        return [x * np.float32(self.factor)]

    def bound(self, arguments: Sequence[Array]) -> Callable[[], object]:
        def call() -> None:
            assert self.threads, "it runs on its own number of threads"
            self.runs += 1

        return call

    @contextlib.contextmanager
    def on_threads(self, threads: int | None) -> Iterator[None]:
        self.threads.append(threads)
        yield
        self.threads.clear()

    def write_onnx(self, path: Path, package: OnnxPackage) -> None:
        content = model(with_layer=False, scale=self.factor)
        content.graph.input[0].name = content.graph.node[0].input[0] = "args_0"
        onnx.save(content, path)

    def loader(self) -> Callable[[], Self] | None:
        return None
