from pathlib import Path

import onnx
import pytest
from onnx import helper

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.openvino.runner import LoweredModel, write_lowered
from tests.handmade_package import WIDTH, write_package
from tests.projected_package import write_projected


def lowered(package: OnnxPackage, folder: Path, *, extended: bool = True) -> LoweredModel:
    folder.mkdir()
    return write_lowered(str(package.model_path), package.root, folder, extended=extended)


def moh_nodes(path: Path) -> set[str]:
    model = onnx.load(path, load_external_data=False)
    assert not model.functions
    return {node.op_type for node in model.graph.node if node.domain.startswith("moh")}


def test_nodes_of_ours_stay_for_the_extension(tmp_path: Path):
    package = write_package(tmp_path / "package")
    found = lowered(package, tmp_path / "lowered")
    assert moh_nodes(found.path) == {"MoHAttention"}
    assert found.domains == {"moh"}
    assert found.inputs == (TensorInfo("x", "float32", ("batch", "seq", WIDTH)),)
    assert found.outputs == ("y",)


def test_without_extension_bodies_are_written_out(tmp_path: Path):
    package = write_package(tmp_path / "package")
    found = lowered(package, tmp_path / "lowered", extended=False)
    assert moh_nodes(found.path) == set()
    assert found.domains == frozenset()
    onnx.checker.check_model(found.path)


def test_dense_projections_stay_and_a_dense_attention_does_not(tmp_path: Path):
    package = write_projected(tmp_path / "package")
    model = onnx.load(package.model_path)
    for node in (*model.graph.node, *model.functions):
        if node.domain == "moh":
            node.domain = "moh.dense.2"
    model.opset_import.append(helper.make_opsetid("moh.dense.2", 1))
    onnx.save(model, package.model_path)
    found = lowered(package, tmp_path / "lowered")
    assert moh_nodes(found.path) == {"MoHQueryProjection", "MoHOutputProjection"}
    assert found.domains == {"moh.dense.2"}


@pytest.mark.parametrize(("same_disk", "is_link"), [(True, False), (False, False), (True, True)])
def test_weights_beside_the_model_are_beside_the_written_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_disk: bool, is_link: bool
):
    package = write_package(tmp_path / "package", external_data=True)
    if is_link:  # as stores of large files keep them
        kept = package.root / "model.onnx.data"
        kept.rename(tmp_path / "kept")
        kept.symlink_to("../kept")
    if not same_disk:

        def refuse(self: Path, target: Path) -> None:
            raise OSError("Invalid cross-device link")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    found = lowered(package, tmp_path / "lowered")
    weights = found.path.with_name("model.onnx.data")
    # OpenVINO opens no file outside of the model's folder, through a link either.
    assert not weights.is_symlink()
    assert weights.read_bytes() == (package.root / "model.onnx.data").read_bytes()


@pytest.mark.parametrize(
    "name", ["../outside", "/tmp/outside", "", "folder/../../outside", "model.onnx"]
)
def test_weights_that_are_not_beside_the_model_are_refused(tmp_path: Path, name: str):
    package = write_package(tmp_path / "package", external_data=True)
    content = with_weights_in(package, name)
    (tmp_path / "outside").write_text("as it was")
    (tmp_path / "lowered").mkdir()
    with pytest.raises(PackageError, match="expected a file beside the model"):
        write_lowered(content, package.root, tmp_path / "lowered", extended=True)
    assert (tmp_path / "outside").read_text() == "as it was"


def test_weights_that_are_missing_are_named(tmp_path: Path):
    package = write_package(tmp_path / "package", external_data=True)
    content = with_weights_in(package, "gone.data")
    (tmp_path / "lowered").mkdir()
    with pytest.raises(PackageError, match=r"gone\.data: No such file"):
        write_lowered(content, package.root, tmp_path / "lowered", extended=True)


def with_weights_in(package: OnnxPackage, name: str) -> bytes:
    model = onnx.load(package.model_path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    return model.SerializeToString()
