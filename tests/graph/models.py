"""Small ONNX models to run passes on."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from moh_deploy.graph.load_model import add_function_bodies
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES

Shape = Sequence[int | str | None]


def value(name: str, shape: Shape, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def node(
    op: str,
    inputs: Sequence[ir.Value | None],
    output: ir.Value,
    attributes: Mapping[str, object] | None = None,
) -> ir.Node:
    domain = "moh" if op.startswith("MoH") else ""
    given = {**(attributes or {}), **(PLUGIN_ATTRIBUTES if domain else {})}
    return ir.node(op, inputs, given, domain=domain, outputs=[output])


def model(
    inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Sequence[ir.Node]
) -> ir.Model:
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 20, "moh": 1}, name="g")
    return ir.Model(graph, ir_version=10)


def add_weight(changed: ir.Model, name: str, shape: Sequence[int] = ()) -> ir.Value:
    """Store zeros in a model and return them."""
    weight = value(name, shape)
    weight.const_value = ir.tensor(np.zeros(shape, np.float32), name=name)
    changed.graph.register_initializer(weight)
    return weight


def attention(
    query: ir.Value, key: ir.Value, gates: ir.Value, output: ir.Value, mask: ir.Value | None = None
) -> ir.Node:
    """A MoHAttention of four heads of two, with the keys as values."""
    inputs = [query, key, key, gates, *([] if mask is None else [mask])]
    attributes = {"q_num_heads": 4, "kv_num_heads": 4, "scale": 0.5, "is_causal": 0}
    return node("MoHAttention", inputs, output, attributes)


def two_convolutions() -> ir.Model:
    """Two MoHTokenConv, of which only the second has a gelu: their bodies differ."""
    x, y, z = (value(name, ["b", 12, 4]) for name in "xyz")
    weight = value("weight", [4, 1, 3, 3])
    common = {"channels": 4, "height": 3, "width": 4, "gated": 0}
    nodes = [
        node("MoHTokenConv", [x, weight], y, {**common, "activation": "none"}),
        node("MoHTokenConv", [y, weight], z, {**common, "activation": "gelu"}),
    ]
    made = model([x, weight], [z], nodes)
    add_function_bodies(made, opset=20)
    return made


def three_layers(shape: Sequence[str] = ("b", "s")) -> ir.Model:
    """Attentions `attention 0` to `2`: without, with, and without a mask, so of two bodies."""
    x, gates = value("x", [*shape, 8]), value("gates", [*shape, 4])
    keep = value("keep", [shape[1], shape[1]], ir.DataType.BOOL)
    values = [x, *(value(f"h{i}", [*shape, 8]) for i in range(3))]
    nodes = [
        attention(values[i], values[i], gates, values[i + 1], keep if i == 1 else None)
        for i in range(3)
    ]
    for i, made in enumerate(nodes):
        made.name = f"attention {i}"
    built = model([x, gates, keep], [values[3]], nodes)
    add_function_bodies(built, opset=20)
    return built


def run_three_layers(proto: onnx.ModelProto, batch: int = 2, seq: int = 5) -> np.ndarray:
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {
        "x": rng.standard_normal((batch, seq, 8)).astype(np.float32),
        "gates": 0.1 + np.maximum(rng.standard_normal((batch, seq, 4)), 0).astype(np.float32),
        "keep": np.tri(seq, dtype=bool),
    }
    return session.run(None, inputs)[0]


def content(built: ir.Model) -> bytes:
    return ir.to_proto(built).SerializeToString(deterministic=True)
