from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from moh_deploy.graph.load_model import infer_types
from moh_deploy.graph.precision_casts import lower_precision
from moh_deploy.graph.precision_policy import LowType, plan_precision

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def graph(text: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(HEADER + text))
    infer_types(model)
    return model


def lower(
    model: ir.Model,
    low: LowType = "float16",
    *,
    gates: Sequence[str] = (),
    **largest: float,
) -> dict[str, str]:
    """Lower it, check it, and return the dtype of every value."""
    lower_precision(model, plan_precision(model, low, largest, gates=frozenset(gates)))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return {value.name or "": str(value.dtype.numpy()) for value in values if value.dtype}


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


PERCEPTRON = """
perceptron (float[n, 8] x) => (float[n, 4] y)
<float[8, 16] first, float[16, 4] second>
{ h = MatMul(x, first)
  r = Relu(h)
  y = MatMul(r, second) }
"""


def perceptron() -> ir.Model:
    zeros = {"first": 8 * 16, "second": 16 * 4}
    text = PERCEPTRON
    for name, count in zeros.items():
        text = text.replace(f"] {name}", f"] {name} = {{{','.join(['0'] * count)}}}")
    model = graph(text)
    rng = np.random.default_rng(0)
    for name, value in model.graph.initializers.items():
        value.const_value = ir.tensor(
            rng.standard_normal(value.shape.numpy()).astype(np.float32), name=name
        )
    return model


def test_products_run_in_the_lower_precision_and_the_interface_stays():
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    model = perceptron()
    exact = run(model, x=x)
    dtypes = lower(model)
    assert [dtypes[name] for name in "xhry"] == ["float32", "float16", "float16", "float32"]
    assert {str(w.dtype.numpy()) for w in model.graph.initializers.values()} == {"float16"}
    got = run(model, x=x)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - exact).max() < 5e-3 * np.abs(exact).max()


def test_value_that_would_overflow_stays_in_float32():
    dtypes = lower(perceptron(), h=20_000.0)
    assert dtypes["h"] == dtypes["r"] == "float32"
    assert lower(perceptron(), "bfloat16", h=20_000.0)["h"] == "bfloat16"


def test_weight_that_would_overflow_keeps_its_product_in_float32():
    model = perceptron()
    lower(model, second=70_000.0)
    dtypes = {name: str(weight.dtype.numpy()) for name, weight in model.graph.initializers.items()}
    assert dtypes == {"first.float16": "float16", "second": "float32"}


G = "g (float[n, 8] x, float[8, 8] w) => (float[n, 8] y) "
KEPT: dict[str, tuple[str, dict[str, str]]] = {
    "softmax, norm and choice, with what rearranges them": (
        G
        + """{ scores = MatMul(x, w)
          p = Softmax(scores)
          axes = Constant <value_ints = [0]>()
          moved = Unsqueeze(p, axes)
          back = Squeeze(moved, axes)
          y = MatMul(back, w) }""",
        {
            "scores": "float16",
            **dict.fromkeys(("p", "moved", "back"), "float32"),
            "y.float16": "float16",
        },
    ),
    "an angle": (
        """g (float[n, 1] t, float[1, 8] frequencies, float[8, 8] w) => (float[n, 8] y)
        { angle = MatMul(t, frequencies)
          wave = Cos(angle)
          y = MatMul(wave, w) }""",
        {
            **dict.fromkeys(("angle", "wave"), "float32"),
            **dict.fromkeys(("wave.float16", "y.float16"), "float16"),
        },
    ),
    "integers that are counted": (
        """g (int64[n, 8] position, float[n, 8] x, float[8, 8] w) => (float[n, 8] y)
        { p = Cast <to = 1>(position)
          h = MatMul(x, w)
          z = Add(p, h)
          y = MatMul(z, w) }""",
        {"p": "float32", "h": "float16", "z": "float32"},
    ),
    "not by its scales": (
        """g (float[1, 1, n] x) => (float[1, 1, m] y)
        { none = Constant <value_floats = [0.0]>()
          scales = Constant <value_floats = [1.0, 1.0, 2.0]>()
          h = Resize(x, , scales)
          y = Relu(h) }""",
        {"h": "float16"},
    ),
    "what an inner graph reads": (
        """g (float[n, 8] x, float[8, 8] w, bool keep) => (float[n, 8] y)
        { h = MatMul(x, w)
          y = If (keep) <then_branch = a () => (float[n, 8] t) { t = Relu(h) },
                         else_branch = b () => (float[n, 8] e) { e = Neg(h) }> }""",
        {"h": "float16", "h.float32": "float32", "y": "float32"},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_float32_is_kept_where_it_counts(name: str):
    text, expected = KEPT[name]
    dtypes = lower(graph(text))
    assert {value: dtypes[value] for value in expected} == expected


def test_layer_normalisation_computes_in_float32_by_itself():
    model = graph("""
        g (float[n, 8] x, float[8] scale, float[8, 8] w) => (float[n, 8] y)
        { h = LayerNormalization(x, scale)
          y = MatMul(h, w) }
    """)
    assert lower(model)["h"] == "float16"
    assert [node.op_type for node in model.graph].count("Cast") == 4  # x, scale, w and y


def test_gates_are_in_float32_whatever_makes_them():
    text = G + "{ l = MatMul(x, w) gates = Sigmoid(l) h = MatMul(x, w) y = Mul(h, gates) }"
    assert lower(graph(text), gates=["gates"])["gates"] == "float32"
    assert lower(graph(text))["gates"] == "float16"


def test_operator_without_the_dtype_stays_in_float32():
    text = G + '{ h = Einsum <equation = "nc,cd->nd">(x, w) y = MatMul(h, w) }'
    assert lower(graph(text), "bfloat16")["h"] == "float32"
    assert lower(graph(text), "float16")["h"] == "float16"


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_value_that_is_output_and_read_on_is_cast_for_the_output_only(low: LowType):
    text = G.replace("(float[n, 8] y)", "(float[n, 8] h, float[n, 8] y)")
    model = graph(text + "{ h = MatMul(x, w) y = MatMul(h, w) }")
    dtypes = lower(model, low)
    assert dtypes["h"] == "float32"
    assert dtypes[f"h.{low}"] == low
    assert [value.name for value in model.graph.outputs] == ["h", "y"]


def test_scores_that_a_router_ranks_are_made_of_their_logits_in_float32():
    text = """
        g (float[n, s, 8] x, float[8, 4] w, float[4] b) => (float[n, s, 4] y)
        { logits = MatMul(x, w)
          sigmoid = Sigmoid(logits)
          scores = Add(sigmoid, b)
          y = Relu(scores) }
    """
    assert lower(graph(text))["sigmoid"] == "float16"
    model = graph(text)
    model.graph.opset_imports["moh"] = 1
    model.graph[-1].op_type, model.graph[-1].domain = "MoHRouter", "moh"
    plan = plan_precision(model, "float16", {}, gates=frozenset())
    assert {node.outputs[0].name for node in plan.float32} == {"sigmoid", "scores", "y"}


def test_operator_of_float32_alone_stays_in_float32():
    # It is defined for no other dtype: nothing of it says that it takes floats of several.
    model = graph("""
        g (float[1, n, 4] boxes, float[1, 1, n] x) => (int64[m, 3] chosen)
        { scores = Relu(x)
          at_most = Constant <value_ints = [9]>()
          chosen = NonMaxSuppression(boxes, scores, at_most) }
    """)
    assert lower(model)["chosen"] == "int64"
    feeds = {"boxes": np.eye(4, dtype=np.float32)[None, :2], "x": np.ones((1, 1, 2), np.float32)}
    assert run(model, **feeds).shape[1] == 3


RESIDUAL = """
block (float[n, 8] x, float[8, 8] a, float[8, 8] b, float[8] ones, float[8, 4] router)
 => (float[n, 8] y, float[1, n, 4] gates)
{ start = MatMul(x, a)
  normed = RMSNormalization(start, ones)
  wide = MatMul(normed, b)
  gelu = Sigmoid(wide)
  scaled = Mul(gelu, wide)
  branch = MatMul(scaled, b)
  stream = Add(start, branch)
  beside = Add(wide, scaled)
  again = RMSNormalization(stream, ones)
  out = MatMul(again, b)
  rows = MatMul(again, router)
  axes = Constant <value_ints = [0]> ()
  logits = Unsqueeze(rows, axes)
  gates = moh.MoHRouter <top_k = 2, num_shared_heads = 0, gate_mode = "weighted"> (logits)
  last = Add(stream, out)
  y = MatMul(last, b)
}
"""


def planned(low: LowType) -> dict[str, str]:
    """Return the reason of each value whose maker stays in float32."""
    header = '<ir_version: 11, opset_import: ["" : 23, "moh" : 1]>\n'
    model = ir.from_proto(onnx.parser.parse_model(header + RESIDUAL))
    infer_types(model)
    plan = plan_precision(model, low, {}, gates=frozenset(["gates"]))
    return {str(node.outputs[0].name): reason for node, reason in plan.float32.items()}


def test_the_residual_stream_its_norms_and_logits_stay_in_float32_in_bfloat16():
    reasons = planned("bfloat16")
    assert reasons["stream"] == reasons["last"] == "the residual stream"
    assert reasons["again"] == "a norm of the residual stream"
    assert reasons["rows"] == "a router ranks what is made of it"
    # Products between them, and sums in which no layer is added to its own input, are low.
    assert not {"start", "normed", "wide", "branch", "beside", "out"} & set(reasons)


def test_the_residual_stream_is_float16():
    assert not {"stream", "last", "again", "rows"} & set(planned("float16"))
