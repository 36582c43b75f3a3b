"""`precision --to int4`: stored weights of products get 4 bits, and projections skip heads."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx
import onnx_ir as ir
import pytest

import moh_deploy
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.graph.weights_in_blocks import BlockWeight
from moh_deploy.package import OnnxPackage
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.onnxruntime.quantizer import quantize_weight
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.quantized_package import quantized
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity import compare_recorded
from tests import small_moh
from tests.kernel_library import required_library
from tests.nightly import one_in
from tests.routed_package import Fault, write_routed
from tests.two_layers import write_two_layers

ROUTER = "a router ranks what it makes"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    output = tmp_path_factory.mktemp("precision") / "package"
    export_package(ExportOptions(small_moh.build(), output, input_specs=("x:[2,7,8]:float32",)))
    moh_deploy.tune(output, choose={"all": "projected"})
    return OnnxPackage.open(output)


@pytest.fixture(scope="module")
def int4(package: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    report = moh_deploy.precision(
        package.root, to="int4", output=tmp_path_factory.mktemp("int4") / "package"
    )
    assert report.parity.max_abs_error > 1e-2  # or nothing was rounded
    assert report.lowered == 4  # queries, keys, values, output
    assert report.float32_reasons == {ROUTER: 1}
    return OnnxPackage.open(report.package)


def test_package_passes_verify_and_says_what_it_is(package: OnnxPackage, int4: OnnxPackage):
    assert moh_deploy.verify(int4.root).equal
    assert moh_deploy.verify(int4.root, kernels="off").equal
    assert int4.manifest.precision == "int4"
    assert int4.manifest.inputs == package.manifest.inputs
    assert int4.manifest.proof is not None


def test_layers_keep_their_choice_and_projections_run_on_kernels(
    package: OnnxPackage, int4: OnnxPackage
):
    required_library()
    model = onnx.load(int4.model_path)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MoHMatMulNBits"] == 2  # keys and values
    assert counts["MoHQueryProjectionNBits"] == counts["MoHOutputProjectionNBits"] == 1
    assert counts["MatMul"] == 1  # the router's
    assert int4.manifest.layers == package.manifest.layers
    with open_runner(int4) as runner:
        (layer,) = runner.describe().layer_runs
    assert (layer.runs_as, layer.projections_run_as) == ("kernel", "kernel")


def test_package_opened_again_gives_the_same_bits(int4: OnnxPackage):
    (vectors, *_) = int4.vectors
    first, second = (_outputs(OnnxPackage.open(int4.root), vectors.inputs) for _ in range(2))
    assert first == second


def _outputs(package: OnnxPackage, inputs: dict[str, Array]) -> list[bytes]:
    with open_runner(package) as runner:
        return [array.tobytes() for array in runner.run(inputs).values()]


def test_other_commands_take_the_package(int4: OnnxPackage):
    assert moh_deploy.probe(int4.root).passed
    assert moh_deploy.inspect(int4.root).layer_nodes[0].query_features == 8


def test_choices_by_size_are_kept(tmp_path: Path):
    two = write_two_layers(tmp_path / "two")
    moh_deploy.tune(two.root, choose={"all": "sparse", "all[batch<=1]": "dense"})
    moh_deploy.precision(two.root, to="int4", output=tmp_path / "int4")
    before, after = (OnnxPackage.open(tmp_path / one).manifest.layers for one in ("two", "int4"))
    assert any(layer.ranges for layer in before)
    assert after == before


# Those that no few bits show; see test_precision_int8.py. In 4 bits gates of this small model may
# be off by 1.8, as far as its steps say; without renormalisation they are by 0.7.
_BELOW = {
    "missing renormalisation",
    "other tie order",
    "float16 scores",
    "one gate off by 1 %",
    "wrong scale",
    "stale weights",
}


@pytest.mark.parametrize("fault", one_in(6, [f for f in get_args(Fault) if f not in _BELOW]))
def test_fault_that_is_larger_than_rounding_is_refused(fault: Fault, tmp_path: Path):
    wrong = write_routed(tmp_path / "package", fault)
    made = quantized(wrong, to="int4")
    (tmp_path / "int4").mkdir()
    save_model(made.model, wrong, tmp_path / "int4")
    report = compare_recorded(replace(wrong, root=tmp_path / "int4", manifest=made.manifest(wrong)))
    assert report.answer == "NOT EQUAL"
    assert "blocks.1.attn" in str(report.failure)


def test_package_that_differs_too_much_is_not_written(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def worse(weight: Array, bits: int) -> BlockWeight:
        made = quantize_weight(weight, bits)
        return replace(made, scales=made.scales * 2)

    monkeypatch.setattr("moh_deploy.runtime.quantized_package.quantize_weight", worse)
    with pytest.raises(ValidationError, match="not equal to the reference") as refused:
        moh_deploy.precision(package.root, to="int4", output=tmp_path / "int4")
    assert "--float32 NODE" in str(refused.value.hint)
    assert not (tmp_path / "int4").exists()


def test_condition_beside_the_float32_package_decides(tmp_path: Path):
    routed = write_routed(tmp_path / "package")
    with pytest.raises(ValidationError, match="flips <= 0: 3 of 63 tokens chose other heads"):
        moh_deploy.precision(
            routed.root, to="int4", output=tmp_path / "int4", within=["flips <= 0"]
        )
    assert not (tmp_path / "int4").exists()
    report = moh_deploy.precision(
        routed.root, to="int4", output=tmp_path / "int4", within="flips <= 10 %"
    )
    assert report.beside is not None
    assert [one.verdict for one in report.beside.checks] == ["passed", "passed"]
    shown = report.to_markdown()
    assert "WITHIN TOLERANCE (int4) of the original within the rule for int4" in shown
    assert ".partial" not in shown


def test_projection_that_is_named_stays_in_float32(package: OnnxPackage, tmp_path: Path):
    name = package.manifest.layers[0].query_projection
    assert name is not None
    report = moh_deploy.precision(package.root, to="int4", output=tmp_path / "int4", float32=[name])
    assert report.float32_reasons == {ROUTER: 1, "asked for": 1}
    ops = OnnxPackage.open(report.package).manifest.ops
    assert {"moh::MoHQueryProjection", "moh::MoHOutputProjectionNBits"} < set(ops)


def test_what_cannot_be_is_refused(int4: OnnxPackage, tmp_path: Path):
    with pytest.raises(ConfigError, match="is in int4, expected a package in float32"):
        moh_deploy.precision(int4.root, to="int8", output=tmp_path / "again")
    with pytest.raises(ConfigError, match="is in int4, which is for ONNX Runtime on a CPU"):
        moh_deploy.build(int4.root, backend="tensorrt-rtx", output=tmp_path / "engine")
    # Weights in blocks are ONNX Runtime's: not for any runtime.
    with pytest.raises(
        PackageError, match=r"no standard ones .*: com\.microsoft::MatMulNBits \(4\)"
    ):
        moh_deploy.inline(int4.root, output=tmp_path / "flat.onnx")


def test_quantiser_leaves_the_log_of_the_process_as_it_was(capfd: pytest.CaptureFixture[str]):
    before = logging.getLogger().handlers[:], logging.getLogger().level
    quantize_weight(ir.tensor([[1.0] * 4] * 4).numpy().astype("float32"), 4)
    assert (logging.getLogger().handlers[:], logging.getLogger().level) == before
    assert capfd.readouterr() == ("", "")
