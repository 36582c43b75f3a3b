"""Some entries of a value are what the whole value has there, through each operator."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.load_model import infer_types
from moh_deploy.graph.narrowing.narrowing import Narrowing, NotNarrowedError
from moh_deploy.graph.narrowing.rules import RULES
from moh_deploy.system.npz import Array

KEPT = (0, 2)


@dataclass(frozen=True)
class Case:
    """A value y of x [2, 5, 4] and the weight W [4, 12]: entries along an axis are wanted."""

    name: str
    steps: str
    axis: int
    kept: tuple[int, ...] = KEPT
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: dict[str, object] = field(default_factory=dict)


SPLIT = {"heads": [0, 0, 3, 4]}
CHANNELS = (0, 1, 2, 3, 8, 9, 10, 11)

CASES = [
    Case("product", "y = MatMul (x, W)", 2, CHANNELS),
    Case("bias", "a = MatMul (x, W)\n y = Add (a, b)", 2, CHANNELS, {"b": (12,)}),
    Case("rows", "a = MatMul (x, W)\n y = MatMul (A, a)", 1, KEPT, {"A": (3, 5)}),
    Case("heads", "a = MatMul (x, W)\n y = Reshape (a, heads)", 2, KEPT, {}, SPLIT),
    Case(
        "merged",
        "a = MatMul (x, W)\n c = Reshape (a, heads)\n d = Mul (c, s)\n y = Reshape (d, merged)",
        2,
        CHANNELS,
        {"s": (4,)},
        {**SPLIT, "merged": [0, 0, 12]},
    ),
    Case(
        "heads first",
        "a = MatMul (x, W)\n c = Reshape (a, heads)\n y = Transpose <perm = [0, 2, 1, 3]> (c)",
        1,
        KEPT,
        {},
        SPLIT,
    ),
    Case(
        "shape of sizes",
        "n = Shape <start = 0, end = 2> (x)\n s = Concat <axis = 0> (n, tail)\n"
        " a = MatMul (x, W)\n y = Reshape (a, s)",
        2,
        KEPT,
        {},
        {"tail": [3, 4]},
    ),
    Case(
        "rotated",
        "a = MatMul (x, W)\n c = Reshape (a, heads)\n"
        " l, r = Split <axis = 3, num_outputs = 2> (c)\n"
        " m = Neg (r)\n d = Concat <axis = -1> (m, l)\n e = Mul (d, t)\n y = Add (c, e)",
        2,
        KEPT,
        {"t": (5, 1, 4)},
        SPLIT,
    ),
    Case("packed", "a = MatMul (x, W)\n q, y, v = Split <axis = -1> (a, parts)", 2, (1, 2), {},
         {"parts": [4, 4, 4]}),
    Case("sliced", "a = MatMul (x, W)\n y = Slice (a, from, to, last)", 2, (1, 3), {},
         {"from": [4], "to": [8], "last": [2]}),
    Case("sliced elsewhere", "a = MatMul (x, W)\n y = Slice (a, from, to, one)", 2, (1, 3), {},
         {"from": [1], "to": [3], "one": [1]}),
    Case("joined", "a = MatMul (x, W)\n c = MatMul (x, V)\n y = Concat <axis = 2> (a, c)", 2,
         (1, 11, 12, 14), {"V": (4, 3)}),
    Case("norm of a head",
         "a = MatMul (x, W)\n c = Reshape (a, heads)\n n = ReduceL2 <keepdims = 1> (c, last)\n"
         " y = Div (c, n)", 2, KEPT, {}, {**SPLIT, "last": [-1]}),
    Case("without its axis",
         "a = MatMul (x, W)\n c = Reshape (a, heads)\n y = ReduceMean <keepdims = 0> (c, one)", 1,
         KEPT, {}, {**SPLIT, "one": [1]}),
    Case("normalised",
         "a = MatMul (x, W)\n c = Reshape (a, heads)\n y = LayerNormalization (c, s)", 2, KEPT,
         {"s": (4,)}, SPLIT),
    Case("gemm", "f = Reshape (x, flat)\n y = Gemm <transB = 1> (f, B, c)", 1, KEPT,
         {"B": (3, 4), "c": (3,)}, {"flat": [10, 4]}),
    Case("channels", "c = Transpose <perm = [0, 2, 1]> (x)\n y = Conv (c, F, b)", 1, (0, 1, 4, 5),
         {"F": (6, 4, 1), "b": (6,)}),
    Case("channels of their own",
         "c = Transpose <perm = [0, 2, 1]> (x)\n d = Conv (c, F)\n"
         " y = Conv <group = 6, pads = [1, 1]> (d, G, b)", 1, (0, 1, 4, 5),
         {"F": (6, 4, 1), "G": (6, 1, 3), "b": (6,)}),
    Case("groups of channels",
         "c = Transpose <perm = [0, 2, 1]> (x)\n d = Conv (c, F)\n y = Conv <group = 3> (d, G)", 1,
         (0, 1, 4, 5), {"F": (9, 4, 1), "G": (6, 3, 1)}),
    Case("samples", "y = Conv (E, F)", 0, (0, 2), {"E": (3, 4, 2), "F": (6, 4, 1)}),
    Case("table", "y = Gather <axis = 0> (T, rows)", 2, KEPT, {"T": (4, 3)},
         {"rows": [[0, 2], [1, 3]]}),
    Case("one of a few",
         "a = MatMul (x, V)\n c = Reshape (a, wide)\n y = Gather <axis = -2> (c, second)", 2,
         (0, 5),
         {"V": (4, 48)}, {"wide": [2, 5, 8, 3, 2], "second": 1}),
    Case("looked up", "y = GatherND (T, rows)", 1, KEPT, {"T": (4, 3)}, {"rows": [[0], [2]]}),
    Case("axes", "a = MatMul (x, W)\n c = Unsqueeze (a, one)\n y = Squeeze (c, one)", 2, CHANNELS,
         {}, {"one": [1]}),
    Case("expanded", "y = Expand (E, shape)", 1, KEPT, {"E": (3, 1)}, {"shape": [2, 3, 4]}),
]  # fmt: skip


def _model(case: Case) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20]> agraph (float[2, 5, 4] x) => (float y) {{'
        f" {case.steps} }}"
    )
    rng = np.random.default_rng(0)
    arrays: dict[str, Array] = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"W": (4, 12), **case.weights}.items()
    }
    arrays |= {name: np.array(item) for name, item in case.numbers.items()}
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def _narrowed(proto: onnx.ModelProto, axis: int, kept: tuple[int, ...]) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    infer_types(model)
    found = Narrowing(model, RULES).narrowed(model.graph.outputs[0], axis, kept)
    model.graph.outputs[0] = found
    return ir.to_proto(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_entries_are_those_of_the_whole_value(case: Case):
    proto = _model(case)
    x = {"x": np.random.default_rng(1).standard_normal((2, 5, 4)).astype(np.float32)}
    (whole,) = ReferenceEvaluator(proto).run(None, x)
    narrow = _narrowed(proto, case.axis, case.kept)
    onnx.checker.check_model(narrow)
    (found,) = ReferenceEvaluator(narrow).run(None, x)
    np.testing.assert_allclose(found, np.take(whole, case.kept, case.axis), atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "kept", "reason"),
    [
        ("y = Relu (x)", KEPT, "'x' is an input of the model"),
        ("a = MatMul (x, W)\n y = CumSum (a, one)", KEPT, "'y' is made by CumSum, through which"),
        ("a = MatMul (x, W)\n y = Softmax (a)", KEPT, "'y' is normalised over all heads together"),
        (
            "a = MatMul (x, W)\n c = Reshape (a, turned)\n y = Transpose <perm = [0, 2, 1]> (c)",
            (1,),
            r"'c' \[2, 12, 5\] is reshaped from \[2, 5, 12\], in which its heads are not apart",
        ),
        (
            "c = Transpose <perm = [0, 2, 1]> (x)\n y = Conv (c, F)",
            KEPT,
            "'y' is a convolution along the axis of its heads",
        ),
        (
            "c = Transpose <perm = [0, 2, 1]> (x)\n d = Conv (c, F)\n"
            " e = Conv <group = 2> (d, G)\n y = Transpose <perm = [0, 2, 1]> (e)",
            (0, 1, 3),
            "'e' is a convolution whose groups span heads",
        ),
    ],
)
def test_what_mixes_heads_is_refused(steps: str, kept: tuple[int, ...], reason: str):
    weights = {"F": (6, 4, 1), "G": (6, 3, 1)}
    case = Case("refused", steps, 2, kept, weights, {"one": [2], "turned": [2, 12, 5]})
    with pytest.raises(NotNarrowedError, match=reason):
        _narrowed(_model(case), 2, kept)


def test_weight_of_two_products_is_cut_once():
    case = Case("twice", "a = MatMul (x, W)\n c = MatMul (x, W)\n y = Add (a, c)", 2)
    narrow = _narrowed(_model(case), 2, KEPT)
    cut = [weight.name for weight in narrow.graph.initializer if tuple(weight.dims) == (4, 2)]
    assert len(cut) == 1
