from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.weights_in_blocks import store_in_blocks
from moh_deploy.package import OnnxPackage, with_choices
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.quantizer import quantize_weight
from moh_deploy.runtime.open_runner import open_runner
from tests.projected_package import OUTPUT, QUERY, write_projected


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_projected(tmp_path / "package")


@pytest.mark.parametrize(
    "choices", [{"all": "projected"}, {"all": "dense", "all[seq<=64]": "projected"}]
)
def test_projections_keep_their_names_and_run_as_their_layer_does(
    package: OnnxPackage, tmp_path: Path, choices: dict[str, str]
):
    model = load_ir(package)
    layers = with_choices(package.manifest.layers, choices, dims=["seq"])
    assert store_in_blocks(model, {QUERY: 4, OUTPUT: 4}, quantize_weight)
    choose_layers(model, layers)
    names = {name.rpartition(":")[2] for name in ops_of(model)}
    assert names == {"MoHAttention", "MoHQueryProjectionNBits", "MoHOutputProjectionNBits"}
    (tmp_path / "blocks").mkdir()
    save_model(model, package, tmp_path / "blocks")
    changed = replace(
        package, root=tmp_path / "blocks", manifest=replace(package.manifest, layers=layers)
    )
    (vectors,) = package.vectors
    expected = vectors.outputs["y"]
    for variant in (Variant(), Variant(kernels="off")):
        with open_runner(changed, variant) as runner:
            got = runner.run(vectors.inputs)["y"]
        # Rounded to 4 bits: a tenth of the largest value, and not the same.
        assert 1e-4 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()


def product_model(*names: str) -> ir.Model:
    body = " ".join(f"[{name}] {name}_result = MatMul (x, w)" for name in names)
    results = ", ".join(f"float[rows, 6] {name}_result" for name in names)
    text = f"products (float[rows, 40] x) => ({results}) {{ {body} }}"
    found = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    weight = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    found.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return ir.from_proto(found)


@pytest.mark.parametrize("bits", [4, 8])
def test_product_becomes_ours_with_the_weight_that_onnxruntime_has_for_it(bits: int):
    model = product_model("a")
    assert store_in_blocks(model, {"a": bits}, quantize_weight)
    (node,) = model.graph
    numbers = {
        name: node.attributes[name].value for name in ("in_features", "out_features", "bits")
    }
    assert (node.domain, node.op_type, node.name) == ("moh", "MoHMatMulNBits", "a")
    assert numbers == {"in_features": 40, "out_features": 6, "bits": bits}
    assert set(model.functions) == {("moh", "MoHMatMulNBits", "")}
    shapes = {name: tuple(weight.shape) for name, weight in model.graph.initializers.items()}
    assert shapes == {f"w.int{bits}": (6, 2, 4 * bits), f"w.int{bits}.scales": (6, 2)}


def test_product_of_an_unknown_rank_becomes_onnxruntimes_own():
    model = product_model("a")
    model.graph.inputs[0].shape = None
    assert store_in_blocks(model, {"a": 4}, quantize_weight)
    (node,) = model.graph
    numbers = {name: item.value for name, item in node.attributes.items()}
    assert (node.domain, node.op_type, node.name) == ("com.microsoft", "MatMulNBits", "a")
    assert numbers == {"K": 40, "N": 6, "bits": 4, "block_size": 32, "accuracy_level": 4}


def test_weight_of_two_products_is_stored_once_and_stays_for_a_third():
    model = product_model("a", "b", "c")
    store_in_blocks(model, {"a": 4, "b": 4}, quantize_weight)
    assert set(model.graph.initializers) == {"w", "w.int4", "w.int4.scales"}
    assert [node.op_type for node in model.graph] == ["MoHMatMulNBits", "MoHMatMulNBits", "MatMul"]


def test_model_without_such_products_stays_as_it_is():
    model = product_model("a")
    assert not store_in_blocks(model, {}, quantize_weight)
    assert [node.op_type for node in model.graph] == ["MatMul"]
