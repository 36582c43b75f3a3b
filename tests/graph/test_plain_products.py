from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.plain_products import (
    make_projections_plain,
    products_of_gemms,
    store_rearranged,
)
from moh_deploy.package import OnnxPackage, with_choices
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.open_runner import open_runner
from tests.projected_package import write_projected


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_projected(tmp_path / "package")


@pytest.mark.parametrize("choices", [{"all": "projected"}, {"all[seq<=64]": "projected"}])
def test_products_take_the_place_of_projections(
    package: OnnxPackage, tmp_path: Path, choices: dict[str, str]
):
    model = load_ir(package)
    layers = with_choices(package.manifest.layers, {"all": "sparse", **choices}, dims=["seq"])
    choose_layers(model, layers)
    changed, (layer,) = make_projections_plain(model, layers)
    assert changed
    assert (layer.query_projection, layer.output_projection) == (None, None)
    assert layer.choice == "sparse"
    assert all(item.choice == "sparse" for item in layer.ranges)
    choose_layers(model, (layer,))
    assert set(ops_of(model)) == {"moh::MoHAttention"}
    (tmp_path / "plain").mkdir()
    save_model(model, package, tmp_path / "plain")
    plain = replace(
        package, root=tmp_path / "plain", manifest=replace(package.manifest, layers=(layer,))
    )
    (vectors,) = package.vectors
    with open_runner(plain) as runner:
        got = runner.run(vectors.inputs)["y"]
    np.testing.assert_allclose(got, vectors.outputs["y"], rtol=1e-5, atol=1e-5)


def test_a_model_without_projections_stays_as_it_is(package: OnnxPackage):
    model = load_ir(package)
    _, layers = make_projections_plain(model, package.manifest.layers)
    before = ir.serde.serialize_model(model).SerializeToString()
    assert make_projections_plain(model, layers) == (False, layers)
    assert ir.serde.serialize_model(model).SerializeToString() == before


def model(*, transposed: bool, biased: bool) -> onnx.ModelProto:
    gemm = f"Gemm <transB = {int(transposed)}> (x, w{', b' if biased else ''})"
    found = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> gemms (float[2, 3] x) =>'
        f" (float[2, 4] y, float[2, 4] z) {{ [last] y = {gemm} [other] z = Gemm (y, square) }}"
    )
    weight = np.arange(12, dtype=np.float32).reshape((4, 3) if transposed else (3, 4))
    stored = {"w": weight, "square": np.eye(4, dtype=np.float32), "b": np.arange(4.0, dtype="f4")}
    weights = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    found.graph.initializer.extend(weights if biased else weights[:2])
    return found


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gemm_becomes_a_product_of_its_name(transposed: bool, biased: bool):
    proto = model(transposed=transposed, biased=biased)
    changed = ir.from_proto(proto)
    assert products_of_gemms(changed, {"last"})
    (product,) = (node for node in changed.graph if node.name == "last")
    assert product.op_type == "MatMul"
    assert [node.name for node in changed.graph if node.op_type == "Gemm"] == ["other"]
    x = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
    after = ReferenceEvaluator(ir.to_proto(changed)).run(None, x)
    for got, expected in zip(after, ReferenceEvaluator(proto).run(None, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_gemm_of_another_name_stays():
    assert not products_of_gemms(ir.from_proto(model(transposed=True, biased=True)), {"y"})


PACKED = np.arange(24, dtype=np.float32).reshape(6, 4)


def packed_model() -> ir.Model:
    """Two products read parts of one packed weight, turned; a third reads what is computed."""
    found = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        weights (float[2, 4] x) => (float a, float b, float c, float d)
        <int64[1] first = {0}, int64[1] middle = {3}, int64[1] axis = {0}, float scale = {2.0}> {
          half = Slice (packed, first, middle, axis)
          turned = Transpose <perm = [1, 0]> (half)
          a = MatMul (x, turned)
          b = MatMul (x, turned)
          x_turned = Transpose <perm = [1, 0]> (x)
          c = MatMul (x, x_turned)
          scaled = Mul (half, scale)
          scaled_turned = Transpose <perm = [1, 0]> (scaled)
          d = MatMul (x, scaled_turned)
        }""")
    for value in found.graph.output:
        value.type.tensor_type.ClearField("shape")
    found.graph.initializer.append(numpy_helper.from_array(PACKED, "packed"))
    return ir.from_proto(found)


def run(changed: ir.Model) -> list[np.ndarray]:
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    return ReferenceEvaluator(ir.to_proto(changed)).run(None, {"x": x})


def test_products_read_what_is_stored_and_compute_the_same():
    changed = packed_model()
    before = run(changed)
    assert store_rearranged(changed, ("MatMul",))
    products = {node.outputs[0].name: node for node in changed.graph if node.op_type == "MatMul"}
    weight = products["a"].inputs[1]
    assert weight is products["b"].inputs[1]
    np.testing.assert_array_equal(weight.const_value.numpy(), PACKED[:3].T)
    assert "turned" not in {node.outputs[0].name for node in changed.graph}
    for got, expected in zip(run(changed), before, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_what_is_computed_stays():
    changed = packed_model()
    store_rearranged(changed, ("MatMul",))
    products = {node.outputs[0].name: node for node in changed.graph if node.op_type == "MatMul"}
    for name in "cd":
        weight = products[name].inputs[1]
        assert weight.producer() is not None
    assert not store_rearranged(changed, ("MatMul",))


def test_projections_read_what_is_stored_too():
    changed = packed_model()
    product = next(node for node in changed.graph if node.outputs[0].name == "a")
    product.domain, product.op_type = "moh", "MoHQueryProjection"
    assert store_rearranged(changed, ("MoHQueryProjection",))
    weight = product.inputs[1]
    np.testing.assert_array_equal(weight.const_value.numpy(), PACKED[:3].T)
