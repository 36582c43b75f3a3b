from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.graph.layer_nodes import (
    LayerNodes,
    projection_flops,
    skippable_flops,
    skipped_flops,
)
from moh_deploy.package import LayerInfo, PackageWriter, SizeRange
from moh_deploy.system.npz import write_npz
from tests.handmade_package import LAYER, MANIFEST, model, vectors, write_package
from tests.kernel_library import required_library
from tests.projected_package import PROJECTED_LAYER, write_projected
from tests.repaired_package import rewrite_manifest
from tests.true_manifest import finish_true


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root


def test_outputs_are_written_by_name(tmp_path: Path, package: Path):
    expected = vectors(batch=1, seq=7)
    write_npz(tmp_path / "in.npz", expected.inputs)
    files = {"inputs": tmp_path / "in.npz", "outputs": tmp_path / "out.npz"}
    report = moh_deploy.run(package, **files, kernels="off")
    with np.load(tmp_path / "out.npz") as results:
        assert results.files == ["y"]
        np.testing.assert_allclose(results["y"], expected.outputs["y"], atol=1e-5)
    assert [(output.name, output.shape) for output in report.outputs] == [("y", (1, 7, 8))]
    assert (report.kernel_nodes, report.function_nodes) == (0, 1)
    assert report.kernels.reason == "switched off"
    assert report.num_nan == {}


def test_inputs_in_their_order_are_said(tmp_path: Path, package: Path):
    np.savez(tmp_path / "in.npz", vectors().inputs["x"])
    files = {"inputs": tmp_path / "in.npz", "outputs": tmp_path / "out.npz"}
    report = moh_deploy.run(package, **files, kernels="off")
    assert report.by_order.endswith(
        "in.npz: no member is called as an input, so order counts: 'x' is 'arr_0'"
    )
    assert report.by_order in report.document().remarks


def test_run_on_kernels_says_so(tmp_path: Path, package: Path):
    library = required_library()
    write_npz(tmp_path / "in.npz", vectors().inputs)
    report = moh_deploy.run(package, inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz")
    assert (report.kernel_nodes, report.function_nodes) == (1, 0)
    assert report.kernels.library == library


def test_nan_in_an_output_is_said(tmp_path: Path, package: Path):
    inputs = dict(vectors(batch=2, seq=7).inputs)
    inputs["x"] = inputs["x"].copy()
    inputs["x"][0] = np.nan
    write_npz(tmp_path / "in.npz", inputs)
    files = {"inputs": tmp_path / "in.npz", "outputs": tmp_path / "out.npz"}
    report = moh_deploy.run(package, **files, kernels="off")
    assert report.num_nan == {"y": 7 * 8}
    assert "output 'y' is NaN in 56 of its 112 elements" in " ".join(report.document().remarks)


def test_failed_run_leaves_no_outputs(tmp_path: Path, package: Path):
    write_npz(tmp_path / "in.npz", {"x": np.zeros(3)})
    with pytest.raises(ConfigError, match="expected dtype float32"):
        moh_deploy.run(package, inputs=tmp_path / "in.npz", outputs=tmp_path / "out.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "package"]


def test_files_of_the_user_are_not_overwritten(tmp_path: Path, package: Path):
    inputs = tmp_path / "in.npz"
    write_npz(inputs, vectors().inputs)
    before = inputs.read_bytes()
    with pytest.raises(ConfigError, match=r"in\.npz is to be written, and is read as well"):
        moh_deploy.run(package, inputs=inputs, outputs=inputs)
    (tmp_path / "train.py").write_text("import torch\n")
    with pytest.raises(PackageError, match=r"train\.py exists and is not a file of arrays"):
        moh_deploy.run(package, inputs=inputs, outputs=tmp_path / "train.py")
    assert inputs.read_bytes() == before
    for _ in range(2):  # outputs of before are replaced
        moh_deploy.run(package, inputs=inputs, outputs=tmp_path / "out.npz", kernels="off")


def test_place_that_cannot_hold_outputs_is_refused_first(tmp_path: Path):
    with pytest.raises(PackageError, match="cannot be written: it is a directory"):
        moh_deploy.run(tmp_path / "none", inputs=tmp_path / "none", outputs=tmp_path)
    with pytest.raises(
        PackageError, match=r"out\.npz cannot be written: there is no directory .*none\."
    ):
        moh_deploy.run(tmp_path, inputs=tmp_path, outputs=tmp_path / "none" / "out.npz")
    with pytest.raises(PackageError, match="named like a file of one array") as refused:
        moh_deploy.run(tmp_path, inputs=tmp_path, outputs=tmp_path / "out.npy")
    assert "out.npz" in str(refused.value.hint)


def test_layer_is_reported_with_what_runs_it_and_what_it_can_skip(tmp_path: Path):
    report = moh_deploy.inspect(write_package(tmp_path / "package").root, kernels="off")
    assert [run.runs_as for run in report.layer_runs] == ["function"]
    assert [run.router_runs_as for run in report.layer_runs] == [None]
    # 4 * B2 * H4 * S3 * T3 * D2 = 576, 11 of 24 active; 10000 in the whole model.
    assert report.skippable_flops == 312
    assert report.skippable_share == 0.0312
    assert report.runtime.startswith("ONNX Runtime ")


def test_package_without_layers_has_nothing_to_skip(tmp_path: Path):
    report = moh_deploy.inspect(write_package(tmp_path / "package", with_layer=False).root)
    assert report.layer_runs == ()
    assert report.skippable_flops == 0


@pytest.mark.parametrize(("choice", "skipped"), [("dense", 0), ("sparse", 120), ("projected", 400)])
def test_projections_count_where_the_choice_skips_them(tmp_path: Path, choice: str, skipped: int):
    root = write_projected(tmp_path / "package").root
    moh_deploy.tune(root, choose={"all": choice})
    report = moh_deploy.inspect(root, kernels="off")
    # 2 * B2 * S3 * H4 * D2 * (8 features before + 6 behind) = 1344, 19 of 24 active.
    (layer,) = report.to_json()["layers"]
    assert (layer["attention_flops"], layer["projection_flops"]) == (576, 1344)
    assert (layer["skippable_flops"], layer["skipped_flops"]) == (400, skipped)
    assert (report.skippable_flops, report.skipped_flops) == (400, skipped)
    assert report.skipped_share == skipped / 10_000


def test_projection_whose_weight_is_no_constant_is_unknown(tmp_path: Path):
    nodes = LayerNodes("MoHAttention", query_features=8)
    assert projection_flops(PROJECTED_LAYER, nodes) is None
    assert skippable_flops(PROJECTED_LAYER, nodes) is None
    assert skipped_flops(replace(PROJECTED_LAYER, choice="sparse"), nodes, {}) == 312


def test_choice_at_the_examples_sizes_counts():
    layer = replace(LAYER, choice="sparse", ranges=(SizeRange("seq", 3, "dense"),))
    nodes = LayerNodes("MoHAttention")
    assert skipped_flops(layer, nodes, {"batch": 2, "seq": 3}) == 0
    assert skipped_flops(layer, nodes, {"batch": 2, "seq": 4}) == 312


def test_sizes_that_were_run_stand_beside_those_that_are_claimed(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    rewrite_manifest(root, lambda found: found.update(dim_ranges={"seq": [1, 10**6]}))
    report = moh_deploy.inspect(root, kernels="off")
    assert report.to_json()["recorded_sizes"] == {"batch": [2], "seq": [3]}
    assert (
        "dynamic dimensions: batch 1 to any size by the trace, run at 2; seq 1 to 1000000 by the"
        " trace, run at 3" in " ".join(report.to_markdown().split())
    )


@pytest.mark.parametrize("unknown", ["active_share", "seq_len", "kv_len", "head_dim"])
def test_skippable_work_is_unknown_where_a_size_is(tmp_path: Path, unknown: str):
    layer = replace(LAYER, **{unknown: None})
    report = moh_deploy.inspect(write_with_layer(tmp_path / "package", layer))
    assert report.skippable_flops is None
    assert report.skippable_share is None


def test_layer_that_was_not_replaced_runs_as_nothing_and_skips_nothing(tmp_path: Path):
    layer = replace(LAYER, replaced=False, node=None, seq_len=None)
    plain = model()
    # An operator of another domain, as all that was not replaced.
    plain.graph.node[2].domain = plain.functions[0].domain = "elsewhere"
    plain.opset_import.add(domain="elsewhere", version=1)
    report = moh_deploy.inspect(write_with_layer(tmp_path / "package", layer, plain))
    assert [run.runs_as for run in report.layer_runs] == [None]
    assert report.skippable_flops == 0


def write_with_layer(
    output: Path, layer: LayerInfo, content: onnx.ModelProto | None = None
) -> Path:
    with PackageWriter(output) as writer:
        onnx.save(content or model(), writer.path("model.onnx"))
        return finish_true(writer, replace(MANIFEST, layers=(layer,)), [vectors()]).root
