from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.runtime.original import OriginalModel, PlainExport
from moh_deploy.system.npz import Array
from tests.handmade_package import MANIFEST, model, vectors, write_package


@dataclass
class Doubles:
    """An original that returns 2 x, and knows on how many threads."""

    name: str = "original model"
    runtime: str = "PyTorch 1"
    sha256: str | None = None
    threads: list[int | None] = field(default_factory=list)

    def called_by(self, manifest: Manifest) -> Doubles:
        assert manifest is MANIFEST
        return self

    def run(self, arguments: Sequence[Array]) -> list[Array]:
        return [2 * arguments[0]]

    def bound(self, arguments: Sequence[Array]) -> Callable[[], object]:
        return lambda: self.run(arguments)

    @contextlib.contextmanager
    def on_threads(self, threads: int | None) -> Iterator[None]:
        self.threads.append(threads)
        yield
        self.threads.clear()

    def write_onnx(self, path: Path, package: OnnxPackage) -> None:
        onnx.save(model(with_layer=False), path)

    def loader(self) -> Callable[[], Doubles] | None:
        return Doubles


def test_original_runs_by_the_names_of_its_package_on_so_many_threads():
    original = Doubles()
    with OriginalModel.of(original, MANIFEST).open(Variant(threads=3)) as runner:
        assert original.threads == [3]
        assert runner.inputs == MANIFEST.inputs
        found = runner.run(vectors().inputs)
        assert runner.describe().where() == "PyTorch 1"
    assert original.threads == []
    np.testing.assert_array_equal(found["y"], 2 * vectors().inputs["x"])


def test_another_process_loads_it_again():
    original = Doubles()
    alone = OriginalModel.of(original, MANIFEST).alone(Variant(threads=1))
    assert alone is not None
    again, variant = alone
    assert variant == Variant(threads=1)
    with again.open(variant) as runner:
        assert original.threads == []
        assert runner.outputs == ("y",)


def test_plain_export_is_written_when_it_is_opened(tmp_path: Path):
    package, path = write_package(tmp_path / "package"), tmp_path / "plain" / "model.onnx"
    export = PlainExport(Doubles(), package, path)
    assert not path.exists()
    with export.open(Variant(kernels="off")) as runner:
        np.testing.assert_array_equal(runner.run(vectors().inputs)["y"], vectors().inputs["x"])
    assert export.alone(Variant()) == (OnnxFile(path), Variant())
