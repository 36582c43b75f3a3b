"""From an ONNX file to a package, end to end."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.open_runner import open_runner
from tests.exporting import prove_in_this_process
from tests.frontend.load.onnx_graph.gated_layers import write_layer
from tests.frontend.load.onnx_graph.onnx_models import written
from tests.nightly import nightly
from tests.zoo import ZOO


@pytest.fixture(autouse=True)
def _proof_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    prove_in_this_process(monkeypatch)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A file of one MoH layer, operator set 23, with metadata of its author's."""
    path = write_layer(tmp_path / "layer.onnx", "Attention of opset 23")
    model = onnx.load(path)
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, path)
    return path


def test_package_of_a_file_keeps_names_dimensions_opset_and_metadata(
    layer: Path, tmp_path: Path
) -> None:
    report = moh_deploy.export(layer, tmp_path / "package")
    assert [(item.router, item.top_k, item.replaced) for item in report.layers] == [
        ("ranked", 2, True)
    ]
    package = OnnxPackage.open(tmp_path / "package")
    manifest = package.manifest
    assert [(item.name, item.dtype, item.shape) for item in manifest.inputs] == [
        ("x", "float32", ("batch", 6, 64))
    ]
    assert [(output.name, output.shape) for output in manifest.outputs] == [("y", ("batch", 6, 64))]
    assert manifest.opset == 23
    assert "onnxruntime" in manifest.made_with
    model = onnx.load(package.model_path)
    assert {prop.key: prop.value for prop in model.metadata_props}["author"] == "somebody"
    # Recorded were runs of the file itself.
    vectors = package.vectors[0]
    found = open_runner(layer).run({"x": vectors.inputs["x"]})
    np.testing.assert_allclose(found["y"], vectors.outputs["y"], rtol=0, atol=1e-6)


@nightly
def test_package_of_a_package_has_the_same_layers(layer: Path, tmp_path: Path) -> None:
    first = moh_deploy.export(layer, tmp_path / "first")
    again = moh_deploy.export(tmp_path / "first" / "model.onnx", tmp_path / "again")
    kept = [
        (item.num_heads, item.top_k, item.router, item.op, item.replaced) for item in first.layers
    ]
    assert kept == [
        (item.num_heads, item.top_k, item.router, item.op, item.replaced) for item in again.layers
    ]


@pytest.mark.nightly
def test_package_with_windows_of_an_image_has_them_again(tmp_path: Path) -> None:
    (animal,) = (entry for entry in ZOO if entry.name == "window_by_columns")
    inputs = {item.name: item.value for item in animal.inputs()}
    moh_deploy.export(animal.build(), tmp_path / "first", inputs=inputs)
    again = moh_deploy.export(tmp_path / "first" / "model.onnx", tmp_path / "again")
    assert [(entry.op, entry.replaced) for entry in again.layers] == [
        ("MoHAggregatedAttention", True)
    ]


def test_options_that_have_no_meaning_for_a_file_are_refused(layer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is an ONNX model, for which --factory 'm:f'"):
        moh_deploy.export(layer, tmp_path / "package", factory="m:f")
    with pytest.raises(ConfigError, match="--dtype float16 was given, but the model is an ONNX"):
        moh_deploy.export(layer, tmp_path / "package", dtype="float16")


@nightly
def test_old_operator_set_is_brought_to_the_first_that_bodies_are_written_in(
    tmp_path: Path,
) -> None:
    path = write_layer(tmp_path / "layer.onnx", "MultiHeadAttention")
    moh_deploy.export(path, tmp_path / "package")
    assert OnnxPackage.open(tmp_path / "package").manifest.opset == 18


@nightly
def test_node_of_another_domain_stays_in_the_package(tmp_path: Path) -> None:
    path = written(
        """g (float[n, 3, 3] x) => (float[n, 3, 3] y) {
            [turned] v = com.microsoft.Inverse (x)
            y = Relu (v)
        }""",
        tmp_path / "model.onnx",
    )
    arrays = {"x": np.stack([np.eye(3, dtype=np.float32) * (2 + i) for i in range(3)])}
    moh_deploy.export(path, tmp_path / "package", inputs=arrays)
    model = onnx.load(tmp_path / "package" / "model.onnx")
    first = model.graph.node[0]
    assert (first.domain, first.op_type, first.name) == ("com.microsoft", "Inverse", "turned")
    assert {item.domain: item.version for item in model.opset_import}["com.microsoft"] == 1


@nightly
def test_file_is_no_eager_baseline_of_itself(layer: Path, tmp_path: Path) -> None:
    moh_deploy.export(layer, tmp_path / "package")
    original = moh_deploy.load_original(layer)
    assert original.runtime.startswith("ONNX Runtime")
    package = OnnxPackage.open(tmp_path / "package")
    with pytest.raises(ConfigError, match=r"is an ONNX file: there is no plain-onnx of it"):
        original.write_onnx(tmp_path / "plain.onnx", package)
    with pytest.raises(ConfigError, match="there is no eager of it"):
        original.bound([package.vectors[0].inputs["x"]])


@nightly
def test_package_is_compared_with_the_file_layer_by_layer(layer: Path, tmp_path: Path) -> None:
    moh_deploy.export(layer, tmp_path / "package")
    original = moh_deploy.load_original(layer)
    report = moh_deploy.verify(tmp_path / "package", against=[original])
    report.raise_if_unequal()
    assert report.routing_agreement == 1.0
