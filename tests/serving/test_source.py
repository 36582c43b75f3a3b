"""What a served model runs its batches on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description, Runner, Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving import source
from moh_deploy.serving.source import OneModel, open_model
from moh_deploy.system.npz import Array
from tests.edge_case_package import inputs, write_edge_package

WAY = Variant(threads=1)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("edge") / "package")


def test_a_small_model_is_read_in_a_session_of_its_own_with_the_same_answers(package: OnnxPackage):
    model = open_model(PackageDir(package.root), package.gate_names, WAY)
    # Nothing is declared where nobody reads.
    assert set(model.runner.outputs) == {"y"}
    plain = model.run(inputs(), ("y",), ())
    read = model.run(inputs(), ("y",), package.gate_names)
    assert set(plain.results) == {"y"}
    assert set(read.results) == {"y", *package.gate_names}
    assert plain.results["y"].tobytes() == read.results["y"].tobytes()
    model.close()


def test_only_runs_of_which_inner_values_are_wanted_are_read():
    class Named(Runner):
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return dict.fromkeys(("y", "gates", self.name), np.zeros(1))

        def run_returning(
            self, inputs: Mapping[str, Array], outputs: Sequence[str]
        ) -> dict[str, Array]:
            return self.run(inputs)

        def describe(self) -> Description:
            raise NotImplementedError

    model = OneModel(Named("plain"), Named("read"))
    assert "plain" in model.run({}, ("y",), ()).results
    assert "read" in model.run({}, ("y",), ("gates",)).results


def test_a_large_model_is_in_memory_once(package: OnnxPackage, monkeypatch: pytest.MonkeyPatch):
    size = package.model_path.stat().st_size
    monkeypatch.setattr(source, "MOST_BYTES_TWICE", size - 1)
    model = open_model(PackageDir(package.root), package.gate_names, WAY)
    assert model.reading is None
    assert set(model.run(inputs(), ("y",), package.gate_names).results) > set(package.gate_names)
    monkeypatch.setattr(source, "MOST_BYTES_TWICE", size)
    assert open_model(PackageDir(package.root), package.gate_names, WAY).reading is not None


def test_a_model_whose_inner_values_nobody_wants_is_opened_once(package: OnnxPackage):
    assert open_model(PackageDir(package.root), (), WAY).reading is None
