from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.errors import PackageError
from moh_deploy.graph import choose_layers as job
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, with_choices
from tests.handmade_package import write_package
from tests.kernel_library import required_library
from tests.two_layers import write_two_layers


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def choose(package: OnnxPackage, **choices: str) -> OnnxPackage:
    layers = with_choices(
        package.manifest.layers, {name.replace("_", "."): one for name, one in choices.items()}
    )
    return write_choices(package, layers, package.root)


def ways(package: OnnxPackage, **options: object) -> list[str | None]:
    return [run.runs_as for run in moh_deploy.inspect(package.root, **options).layer_runs]


def test_dense_layer_runs_as_its_body_and_says_so(package: OnnxPackage):
    choose(package, blocks_0_attn="dense")
    assert ways(package, kernels="off") == ["dense", "function"]
    assert moh_deploy.verify(package.root, kernels="off").equal


def test_dense_layer_runs_as_its_body_where_there_are_kernels(package: OnnxPackage):
    required_library()
    choose(package, blocks_0_attn="dense")
    # A layer that is dense on purpose is not a missing kernel.
    assert ways(package, kernels="require") == ["dense", "kernel"]
    assert moh_deploy.verify(package.root, kernels="require").equal


@pytest.mark.parametrize("external_data", [False, True])
def test_choice_can_be_taken_back(tmp_path: Path, external_data: bool):
    package = write_package(tmp_path / "package", external_data=external_data)
    first = files(choose(package, all="sparse").root)
    assert files(choose(package, all="dense").root) != first
    assert moh_deploy.verify(package.root).equal
    assert files(choose(package, all="sparse").root) == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["package"]


def test_what_was_not_chosen_stays_as_it_was(package: OnnxPackage):
    written = choose(package, blocks_1_attn="dense")
    first, second = written.manifest.layers
    assert (first.choice, second.choice) == (None, "dense")
    assert written.manifest.ops == {
        "moh::MoHAttention": 1,
        "moh.dense::MoHAttention": 1,
        "moh::MoHRouter": 1,
    }
    unchanged = replace(
        written.manifest,
        layers=package.manifest.layers,
        ops=package.manifest.ops,
        files=package.manifest.files,
    )
    assert unchanged == package.manifest
    assert written.manifest.files["vectors.npz"] == package.manifest.files["vectors.npz"]


def test_choice_may_be_written_elsewhere(package: OnnxPackage, tmp_path: Path):
    before = files(package.root)
    layers = with_choices(package.manifest.layers, {"all": "dense"})
    assert ways(write_choices(package, layers, tmp_path / "other")) == ["dense", "dense"]
    assert files(package.root) == before


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_whatever_stops_the_writing_leaves_the_package(
    package: OnnxPackage, monkeypatch: pytest.MonkeyPatch, problem: BaseException
):
    def stop(_model: object, path: Path) -> None:
        path.write_bytes(b"half a model")
        raise problem

    monkeypatch.setattr(job, "save_with_weights", stop)
    before = files(package.root)
    expected = PackageError if isinstance(problem, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="disk full" if isinstance(problem, OSError) else None):
        choose(package, all="dense")
    assert files(package.root) == before
    assert [entry.name for entry in package.root.parent.iterdir()] == ["package"]


def test_choice_written_to_another_layer_is_found_out(package: OnnxPackage, tmp_path: Path):
    """A planted bug: the manifest says that the first layer is dense, the model that the second."""
    chosen = choose(package, blocks_1_attn="dense")
    model = onnx.load(chosen.model_path)
    root = write_two_layers(tmp_path / "other").root
    package = choose(OnnxPackage.open(root), blocks_0_attn="dense")
    onnx.save(model, package.model_path)
    with pytest.raises(PackageError, match=r"blocks\.0\.attn/moh: moh\.dense', .*: moh'\."):
        open_without_digests(package)


def open_without_digests(package: OnnxPackage) -> None:
    from moh_deploy.runtime.base import Variant
    from moh_deploy.runtime.open_runner import open_runner

    open_runner(OnnxPackage.open(package.root, check_digests=False), Variant(kernels="off"))
