"""`precision --to int8`: products with stored weights become integers, and the rest stays."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import onnx
import onnx_ir as ir
import pytest

import moh_deploy
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.package import OnnxPackage
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.quantized_package import quantized
from moh_deploy.validate.compare.parity import compare_recorded
from tests import small_moh
from tests.handmade_package import write_package
from tests.nightly import nightly, one_in, sampled
from tests.projected_package import write_projected
from tests.routed_package import Fault, write_routed
from tests.two_layers import write_two_layers


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    output = tmp_path_factory.mktemp("precision") / "package"
    export_package(ExportOptions(small_moh.build(), output, input_specs=("x:[2,7,8]:float32",)))
    return OnnxPackage.open(output)


@pytest.fixture(scope="module")
def int8(package: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    report = moh_deploy.precision(
        package.root, to="int8", output=tmp_path_factory.mktemp("int8") / "package"
    )
    assert report.parity.max_abs_error > 1e-3  # or nothing was rounded
    assert report.lowered == 4  # queries, keys, values, output
    assert report.float32_reasons == {"a router ranks what it makes": 1}
    return OnnxPackage.open(report.package)


def test_package_passes_verify_and_says_what_it_is(package: OnnxPackage, int8: OnnxPackage):
    assert moh_deploy.verify(int8.root).equal
    assert int8.manifest.precision == "int8"
    assert int8.manifest.compute_type == "bfloat16"  # in attention
    assert (int8.manifest.inputs, int8.manifest.outputs) == (
        package.manifest.inputs,
        package.manifest.outputs,
    )
    assert int8.manifest.proof is not None


def test_model_is_of_standard_operators_and_layers_keep_their_kernels(int8: OnnxPackage):
    model = onnx.load(int8.model_path)
    onnx.checker.check_model(model, full_check=True)
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["MatMulInteger"], counts["MatMul"], counts["MoHAttention"]) == (4, 1, 1)
    assert {one.domain for one in model.opset_import} <= {"", "moh", "moh.dense"}
    assert not [one.key for one in model.metadata_props if "quant" in one.key]


def test_weights_are_a_quarter_of_the_bytes(package: OnnxPackage, int8: OnnxPackage):
    def weights(one: OnnxPackage) -> int:
        return sum(len(array.raw_data) for array in onnx.load(one.model_path).graph.initializer)

    assert weights(int8) < 0.6 * weights(package)  # of 8 x 8 numbers: scales count too


@nightly
def test_other_commands_take_the_package(int8: OnnxPackage, tmp_path: Path):
    moh_deploy.inline(int8.root, output=tmp_path / "flat.onnx")
    assert moh_deploy.probe(int8.root).passed
    moh_deploy.tune(int8.root, choose={"all": "dense"})
    assert moh_deploy.verify(int8.root, kernels="off").equal


def test_choices_by_size_are_kept_and_projections_become_products(tmp_path: Path):
    two = write_two_layers(tmp_path / "two")
    moh_deploy.tune(two.root, choose={"all": "sparse", "all[batch<=1]": "dense"})
    moh_deploy.precision(two.root, to="int8", output=tmp_path / "int8")
    before, after = (
        OnnxPackage.open(root).manifest.layers for root in (two.root, tmp_path / "int8")
    )
    assert any(layer.ranges for layer in before)
    assert [(one.choice, one.ranges) for one in after] == [
        (one.choice, one.ranges) for one in before
    ]
    write_projected(tmp_path / "projected")
    moh_deploy.tune(tmp_path / "projected", choose={"all": "projected"})
    moh_deploy.precision(tmp_path / "projected", to="int8", output=tmp_path / "products")
    made = OnnxPackage.open(tmp_path / "products").manifest
    (layer,) = made.layers
    assert (layer.choice, layer.query_projection, layer.output_projection) == ("sparse", None, None)
    assert set(made.ops) == {"moh::MoHAttention"}


# The float32 package is compared first, and refused with any of these. What is below rounding to
# integers cannot be seen behind it.
_BELOW = {
    "other tie order",
    "float16 scores",
    "one gate off by 1 %",
    "wrong scale",
    "stale weights",
}


@sampled(2)
@pytest.mark.parametrize("fault", one_in(3, [f for f in get_args(Fault) if f not in _BELOW]))
def test_fault_that_is_larger_than_rounding_is_refused(fault: Fault, tmp_path: Path):
    wrong = write_routed(tmp_path / "package", fault)
    made = quantized(wrong)
    (tmp_path / "int8").mkdir()
    save_model(made.model, wrong, tmp_path / "int8")
    report = compare_recorded(replace(wrong, root=tmp_path / "int8", manifest=made.manifest(wrong)))
    assert report.answer == "NOT EQUAL"
    assert "blocks.1.attn" in str(report.failure)


def test_product_that_is_named_stays_in_float32(package: OnnxPackage, tmp_path: Path):
    report = moh_deploy.precision(
        package.root, to="int8", output=tmp_path / "int8", float32=["model.MatMul"]
    )
    assert report.lowered == 3
    assert report.float32_reasons["asked for"] == 1
    with pytest.raises(
        ConfigError, match=r"there is no product 'model\.Matmul' in the model"
    ) as refused:
        moh_deploy.precision(
            package.root, to="int8", output=tmp_path / "again", float32=["model.Matmul"]
        )
    assert "model.MatMul" in str(refused.value.hint)
    with pytest.raises(ConfigError, match="which is for int8 and int4; to is float16"):
        moh_deploy.precision(
            package.root, to="float16", output=tmp_path / "half", float32=["model.MatMul"]
        )


def test_package_that_differs_too_much_is_not_written(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def worse(*given: object, **named: object) -> object:
        made = quantized(*given, **named)  # type: ignore[arg-type]
        for value in made.model.graph.initializers.values():
            if value.name is not None and value.name.endswith("_scale"):
                assert value.const_value is not None
                value.const_value = ir.tensor(value.const_value.numpy() * 3)
        return made

    monkeypatch.setattr("moh_deploy.api.precision.quantized", worse)
    with pytest.raises(ValidationError, match="not equal to the reference") as refused:
        moh_deploy.precision(package.root, to="int8", output=tmp_path / "int8")
    assert "--float32 NODE" in str(refused.value.hint)
    assert not (tmp_path / "int8").exists()


def test_what_cannot_be_int8_is_refused(int8: OnnxPackage, tmp_path: Path):
    write_package(tmp_path / "handmade")
    with pytest.raises(ConfigError, match="has no product that could be in int8"):
        moh_deploy.precision(tmp_path / "handmade", to="int8", output=tmp_path / "int8")
    with pytest.raises(ConfigError, match="is in int8, expected a package in float32"):
        moh_deploy.precision(int8.root, to="float16", output=tmp_path / "half")
    with pytest.raises(ConfigError, match="is in int8, which is for ONNX Runtime on a CPU"):
        moh_deploy.build(int8.root, backend="tensorrt-rtx", output=tmp_path / "engine")
