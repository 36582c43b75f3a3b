from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from moh_deploy.package import Manifest
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.runtime.original import OriginalModel, PlainExport
from tests.fake_original import FakeOriginal
from tests.handmade_package import MANIFEST, vectors, write_package


class Loadable(FakeOriginal):
    def called_by(self, manifest: Manifest) -> Loadable:
        assert manifest is MANIFEST
        return self

    def loader(self) -> Callable[[], FakeOriginal]:
        return Loadable


def test_original_runs_by_the_names_of_its_package_on_so_many_threads():
    original = Loadable(2)
    with OriginalModel.of(original, MANIFEST).open(Variant(threads=3)) as runner:
        assert original.threads == [3]
        assert runner.inputs == MANIFEST.inputs
        found = runner.run(vectors().inputs)
        assert runner.describe().where() == "PyTorch 1"
    assert original.threads == []
    np.testing.assert_array_equal(found["y"], 2 * vectors().inputs["x"])


def test_another_process_loads_it_again():
    original = Loadable()
    alone = OriginalModel.of(original, MANIFEST).alone(Variant(threads=1))
    assert alone is not None
    again, variant = alone
    assert variant == Variant(threads=1)
    with again.open(variant) as runner:
        assert original.threads == []
        assert runner.outputs == ("y",)


def test_plain_export_is_written_when_it_is_opened(tmp_path: Path):
    package, path = write_package(tmp_path / "package"), tmp_path / "plain" / "model.onnx"
    export = PlainExport(FakeOriginal(), package, path)
    assert not path.exists()
    with export.open(Variant(kernels="off")) as runner:
        x = vectors().inputs["x"]
        np.testing.assert_array_equal(runner.run({"args_0": x})["y"], x)
    assert export.alone(Variant()) == (OnnxFile(path), Variant())
