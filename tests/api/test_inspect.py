from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.graph.layer_nodes import (
    LayerNodes,
    projection_flops,
    skippable_flops,
    skipped_flops,
)
from moh_deploy.package import LayerInfo, PackageWriter, SizeRange
from tests.handmade_package import LAYER, MANIFEST, model, vectors, write_package
from tests.kernel_library import required_library
from tests.projected_package import PROJECTED_LAYER, write_projected
from tests.repaired_package import rewrite_manifest
from tests.true_manifest import finish_true


def test_layer_is_reported_with_what_runs_it_and_what_it_can_skip(tmp_path: Path):
    report = moh_deploy.inspect(write_package(tmp_path / "package").root, kernels="off")
    assert [run.runs_as for run in report.layer_runs] == ["function"]
    assert [run.router_runs_as for run in report.layer_runs] == [None]
    # 4 * B2 * H4 * S3 * T3 * D2 = 576, 11 of 24 active; 10000 in the whole model.
    assert report.skippable_flops == 312
    assert report.skippable_share == 0.0312
    assert report.runtime.startswith("ONNX Runtime ")


def test_layer_that_the_session_gives_to_a_kernel_runs_as_one(tmp_path: Path):
    library = required_library()
    report = moh_deploy.inspect(write_package(tmp_path / "package").root)
    assert [run.runs_as for run in report.layer_runs] == ["kernel"]
    assert report.kernels.library == library


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
