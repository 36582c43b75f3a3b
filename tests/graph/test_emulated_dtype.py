"""Values are what bfloat16 arithmetic with sums in float32 gives, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, parser

from moh_deploy.errors import BackendError, PackageError
from moh_deploy.graph.emulated_dtype import computes_in, emulate
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array

HEADER = '<ir_version: 10, opset_import: ["" : 21, "other" : 1]>\n'


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str], Path]:
    def saved(text: str) -> Path:
        onnx.save(parser.parse_model(HEADER + text), tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return saved


def rounded(values: Array) -> Array:
    """The nearest bfloat16 of float32 numbers."""
    return values.astype(ml_dtypes.bfloat16)


def noise(*shape: int) -> Array:
    return rounded(np.random.default_rng(7).standard_normal(shape, np.float32))


def test_every_result_is_rounded_and_sums_are_not(save: Callable[[str], Path]):
    path = save(
        """g (bfloat16[3, 64] x, bfloat16[64, 5] w) => (bfloat16[3, 5] y) {
            product = MatMul (x, w)
            y = Add (product, product)
        }""",
    )
    x, w = noise(3, 64), noise(64, 5)
    session = open_runner(path, Variant(extra_outputs=("product",)))
    got = session.run({"x": x, "w": w})
    product = rounded(x.astype(np.float32) @ w.astype(np.float32))
    np.testing.assert_array_equal(got["product"], product)
    np.testing.assert_array_equal(got["y"], rounded(product.astype(np.float32) * 2))
    assert session.describe().kernels.emulated_dtype == "bfloat16"
    assert "bfloat16 is emulated" in session.describe().kernels.describe()


def test_float32_beside_it_is_left_alone(save: Callable[[str], Path]):
    path = save(
        """g (float[3] x) => (float[3] precise, float[3] coarse) {
            precise = Mul (x, x)
            low = Cast <to = 16> (x)
            square = Mul (low, low)
            coarse = Cast <to = 1> (square)
        }""",
    )
    x = np.array([1.001, -2.003, 3.0007], np.float32)
    got = open_runner(path).run({"x": x})
    np.testing.assert_array_equal(got["precise"], x * x)
    low = rounded(x).astype(np.float32)
    np.testing.assert_array_equal(got["coarse"], rounded(low * low).astype(np.float32))


def test_branches_read_values_of_the_graph_around_them(save: Callable[[str], Path]):
    path = save(
        """g (bool c, bfloat16[4] x) => (bfloat16[4] y) {
            twice = Add (x, x)
            inner = If (c) <
                then_branch = t () => (bfloat16[4] a) { a = Mul (twice, x) },
                else_branch = e () => (bfloat16[4] b) { b = Sub (twice, x) }
            >
            y = Add (inner, twice)
        }""",
    )
    x = noise(4)
    wide = x.astype(np.float32)
    session = open_runner(path)
    for condition, inner in ((True, rounded(2 * wide * wide)), (False, rounded(wide))):
        got = session.run({"c": np.asarray(condition), "x": x})["y"]
        np.testing.assert_array_equal(got, rounded(inner.astype(np.float32) + 2 * wide))


def test_constants_are_of_the_dtype_that_is_computed_in(save: Callable[[str], Path]):
    path = save(  # The parser takes the bits of a bfloat16.
        """g (int64[1] n, bfloat16[3] x) => (bfloat16[3] y) {
            threes = ConstantOfShape <value = bfloat16[1] {16448}> (n)
            one = Constant <value = bfloat16 {16256}> ()
            product = Mul (threes, x)
            y = Add (product, one)
        }""",
    )
    x = noise(3)
    got = open_runner(path).run({"n": np.array([3]), "x": x})["y"]
    product = rounded(3 * x.astype(np.float32))
    np.testing.assert_array_equal(got, rounded(product.astype(np.float32) + 1))


def test_values_keep_their_names_and_dtypes():
    model = parser.parse_model(
        HEADER + "g (bfloat16[2, 2] x) => (bfloat16[2, 2] y) { h = MatMul (x, x) y = Neg (h) }"
    )
    before = {"x", "h", "y"}
    assert computes_in(model, "bfloat16")
    emulate(model, "bfloat16")
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.input, *inferred.output, *inferred.value_info)
    }
    assert {name for name in before if types[name] == TensorProto.BFLOAT16} == before


def test_a_model_in_float32_is_not_touched(save: Callable[[str], Path]):
    path = save("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    assert not computes_in(onnx.load(path), "bfloat16")
    assert open_runner(path).describe().kernels.emulated_dtype is None
    path = save("g (float[2] x) => (bfloat16[2] y) { y = Cast <to = 16> (x) }")  # only moved
    assert open_runner(path).describe().kernels.emulated_dtype is None


def test_a_value_of_unknown_dtype_is_named():
    text = "g (bfloat16[2] x) => (bfloat16[2] y) { h = other.Thing (x) y = Neg (h) }"
    with pytest.raises(PackageError, match=r"the dtype of 'h' \(Thing\) cannot be inferred"):
        emulate(parser.parse_model(HEADER + text), "bfloat16")


def test_an_emulation_is_not_timed(save: Callable[[str], Path]):
    path = save("g (bfloat16[2] x) => (bfloat16[2] y) { y = Neg (x) }")
    with pytest.raises(BackendError, match="can be run and compared here by emulation, not timed"):
        open_runner(path).bound({"x": noise(2)})


def test_float16_is_rounded_everywhere_if_asked_for(save: Callable[[str], Path]):
    """ONNX Runtime computes runs of float16 operators in float32, and rounds at their ends only."""
    path = save(
        """g (float16[2] x) => (float16[2] y) {
            square = Mul (x, x)
            y = Div (square, x)
        }""",
    )
    x = np.asarray([300, 2], np.float16)
    by_itself = open_runner(path).run({"x": x})
    session = open_runner(path, Variant(round_results=True))
    np.testing.assert_array_equal(by_itself["y"], x)
    np.testing.assert_array_equal(session.run({"x": x})["y"], np.asarray([np.inf, 2], np.float16))
    assert session.describe().kernels.emulated_dtype == "float16"
