"""One MoH layer, from its input to its output, as a user's dense layer and as ours.

The dense layer projects queries, keys and values by one MatMul, computes every head by a fused
operator, weighs the heads by gates that it is given, and projects. Ours also computes the gates.
Rotary positions are on neither side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper
from op_inputs import Shape, float64_heads
from op_models import fused_models

from moh_deploy.ops import OPS, TensorType
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.system.npz import Array

_OPSET = 23


@dataclass(frozen=True)
class Layer:
    """A layer to measure.

    Attributes:
        shape: Of its attention.
        width: Of its input and output.
        routes_by_query: Heads are chosen by the length of their queries, which all have to be
            computed then; else by linear maps of the input.
    """

    name: str
    shape: Shape
    width: int
    routes_by_query: bool = False

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.shape.batch, self.shape.seq_len, self.width)

    @property
    def query_width(self) -> int:
        return self.shape.num_heads * self.shape.head_dim

    @property
    def kv_width(self) -> int:
        return self.shape.num_kv_heads * self.shape.head_dim


def _layer(name: str, *sizes: int, width: int, causal: bool = False) -> Layer:
    batch, num_heads, num_kv_heads, seq_len, head_dim = sizes
    shape = Shape(name, batch, num_heads, num_kv_heads, seq_len, seq_len, head_dim, causal)
    return Layer(name, shape, width, routes_by_query=causal)


LAYERS = (
    _layer("vit-stage-4", 2, 24, 24, 49, 24, width=576),
    _layer("dit-s", 2, 6, 6, 256, 64, width=384),
    _layer("dit-b", 2, 12, 12, 256, 64, width=768),
    _layer("dit-xl", 2, 16, 16, 256, 72, width=1152),
    _layer("llama-1b", 1, 32, 8, 512, 64, width=2048, causal=True),
    _layer("llama-8b", 1, 32, 8, 512, 128, width=4096, causal=True),
)


@dataclass(frozen=True)
class Choice:
    """How many heads a token uses.

    Attributes:
        num_shared: Heads that all tokens use.
        top_k: Heads that a token chooses of the others.
    """

    num_shared: int
    top_k: int

    @property
    def active(self) -> int:
        return self.num_shared + self.top_k


def choice_of(layer: Layer, share: float) -> Choice:
    """Return the nearest whole number of heads, half of them shared."""
    active = max(1, round(share * layer.shape.num_heads))
    return Choice(active // 2, active - active // 2)


Weights = Mapping[str, Array]


def draw_weights(layer: Layer, rng: np.random.Generator) -> Weights:
    """Draw weights under which all values are of order 1.

    Returns:
        query, key_value and router [C, ...], output [H*D, C], and a bias of each but the router.
    """
    widths = {
        "query": (layer.width, layer.query_width),
        "key_value": (layer.width, 2 * layer.kv_width),
        "output": (layer.query_width, layer.width),
        "router": (layer.width, layer.shape.num_heads + 2),
    }
    weights = {name: _normal(rng, sizes) / sizes[0] ** 0.5 for name, sizes in widths.items()}
    biases = {f"{name}_bias": _normal(rng, widths[name][1:]) / 10 for name in list(widths)[:3]}
    return {name: array.astype(np.float32) for name, array in {**weights, **biases}.items()}


def _normal(rng: np.random.Generator, sizes: Sequence[int]) -> Array:
    return rng.standard_normal(sizes, dtype=np.float32)


def float64_output(layer: Layer, weights: Weights, x: Array, gates: Array) -> Array:
    """Compute the layer in float64, with gates [B, S, H] that are given."""
    wide = {name: array.astype(np.float64) for name, array in weights.items()}
    query = x @ wide["query"] + wide["query_bias"]
    key, value = np.split(x @ wide["key_value"] + wide["key_value_bias"], 2, axis=-1)
    heads = float64_heads(layer.shape, query, key, value)  # [B, S, H, D]
    weighted = (heads * gates.astype(np.float64)[..., None]).reshape(query.shape)
    output: Array = weighted @ wide["output"] + wide["output_bias"]
    return output


def dense_models(layer: Layer, weights: Weights) -> dict[str, onnx.ModelProto]:
    """Return the layer around each fused operator: X and gates to Y."""
    return {
        name: _around(layer, weights, build(layer.shape, "float32"))
        for name, build in fused_models(layer.shape).items()
    }


def _around(layer: Layer, weights: Weights, attention: onnx.ModelProto) -> onnx.ModelProto:
    """Put projections before and behind an attention of Q, K, V and gates."""
    packed = {
        "qkv": np.concatenate([weights["query"], weights["key_value"]], axis=1),
        "qkv_bias": np.concatenate([weights["query_bias"], weights["key_value_bias"]]),
        "qkv_sizes": np.array([layer.query_width, layer.kv_width, layer.kv_width]),
        "output": weights["output"],
        "output_bias": weights["output_bias"],
    }
    before = [
        *_affine("X", "qkv", "packed"),
        helper.make_node("Split", ["packed", "qkv_sizes"], ["Q", "K", "V"], axis=-1),
    ]
    inner = [_renamed(node, {"Y": "weighed"}) for node in attention.graph.node]
    nodes = [*before, *inner, *_affine("weighed", "output", "Y")]
    gates = (*layer.x_shape[:2], layer.shape.num_heads)
    return _model(layer, nodes, {"X": layer.x_shape, "gates": gates}, packed)


def _renamed(node: onnx.NodeProto, outputs: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [outputs.get(name, name) for name in node.output]
    return copy


def moh_model(
    layer: Layer, weights: Weights, choice: Choice, *, sparse_projections: bool
) -> onnx.ModelProto:
    """Return our layer: X to Y and gates.

    Args:
        sparse_projections: Project chosen heads only, where the router does not need the others;
            else by MatMul.
    """
    constants = {
        **weights,
        "kv_sizes": np.array([layer.kv_width, layer.kv_width]),
    }
    query = (
        _query_router(layer, choice, constants)
        if layer.routes_by_query
        else _linear_router(layer, choice, constants, sparse=sparse_projections)
    )
    heads = {"q_num_heads": layer.shape.num_heads, "kv_num_heads": layer.shape.num_kv_heads}
    attention = make_node(
        "MoHAttention",
        ["Q", "K", "V", "gates"],
        ["heads"],
        **heads,
        scale=layer.shape.scale,
        is_causal=int(layer.shape.is_causal),
    )
    nodes = [
        *query,
        *_affine("X", "key_value", "KV"),
        helper.make_node("Split", ["KV", "kv_sizes"], ["K", "V"], axis=-1),
        attention,
        *(
            [_projection(layer, "MoHOutputProjection", "heads", "output", "Y")]
            if sparse_projections
            else _affine("heads", "output", "Y")
        ),
    ]
    return _model(layer, nodes, {"X": layer.x_shape}, constants, gates=True)


def _linear_router(
    layer: Layer, choice: Choice, constants: dict[str, Array], *, sparse: bool
) -> list[onnx.NodeProto]:
    """Choose heads by linear maps of X, then project their queries."""
    num_routed = layer.shape.num_heads - choice.num_shared
    constants["logit_sizes"] = np.array([num_routed, choice.num_shared, 2])
    logits = ["routed", "shared", "stage"]
    query = (
        [_projection(layer, "MoHQueryProjection", "X", "query", "Q")]
        if sparse
        else _affine("X", "query", "Q")
    )
    return [
        helper.make_node("MatMul", ["X", "router"], ["logits"]),
        helper.make_node("Split", ["logits", "logit_sizes"], logits, axis=-1),
        make_node(
            "MoHRouter", logits, ["gates"], top_k=choice.top_k, num_shared_heads=choice.num_shared
        ),
        *query,
    ]


def _query_router(
    layer: Layer, choice: Choice, constants: dict[str, Array]
) -> list[onnx.NodeProto]:
    """Choose the heads with the longest queries; every open gate is 1."""
    shape = layer.shape
    constants.pop("router", None)
    constants["by_head"] = np.array([0, 0, shape.num_heads, shape.head_dim])
    constants["last"] = np.array([-1])
    constants["from"], constants["to"] = np.array([choice.num_shared]), np.array([1 << 30])
    constants["head_axis"] = np.array([2])
    return [
        *_affine("X", "query", "Q"),
        helper.make_node("Reshape", ["Q", "by_head"], ["queries"]),
        helper.make_node("ReduceL2", ["queries", "last"], ["lengths"], keepdims=0),
        helper.make_node("Slice", ["lengths", "from", "to", "head_axis"], ["routed"]),
        make_node(
            "MoHRouter",
            ["routed"],
            ["gates"],
            top_k=choice.top_k,
            num_shared_heads=choice.num_shared,
            gate_mode="mask",
        ),
    ]


def _projection(layer: Layer, op: str, x: str, weight: str, output: str) -> onnx.NodeProto:
    inputs = [x, weight, "gates", f"{weight}_bias"]
    return make_node(op, inputs, [output], num_heads=layer.shape.num_heads)


def _affine(x: str, weight: str, output: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [x, weight], [f"{output}_product"]),
        helper.make_node("Add", [f"{output}_product", f"{weight}_bias"], [output]),
    ]


def _model(
    layer: Layer,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Array],
    *,
    gates: bool = False,
) -> onnx.ModelProto:
    """Assemble a model, with the function bodies of its MoH nodes."""
    used = {name for node in nodes for name in node.input}
    outputs = {"Y": layer.x_shape}
    if gates:
        outputs["gates"] = (*layer.x_shape[:2], layer.shape.num_heads)
    graph = helper.make_graph(
        _named(nodes),
        layer.name,
        [_value_info(name, sizes) for name, sizes in inputs.items()],
        [_value_info(name, sizes) for name, sizes in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    opsets = [helper.make_opsetid(domain, 1) for domain in ("com.microsoft", "moh")]
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET), *opsets],
        functions=[_body(layer, node, constants) for node in nodes if node.domain == "moh"],
        ir_version=10,
    )


def _named(nodes: Sequence[onnx.NodeProto]) -> Sequence[onnx.NodeProto]:
    for index, node in enumerate(nodes):
        node.name = f"{node.op_type}_{index}"
    return nodes


def _body(layer: Layer, node: onnx.NodeProto, constants: Mapping[str, Array]) -> onnx.FunctionProto:
    shape = layer.shape
    widths = {
        **dict.fromkeys(("X",), layer.width),
        **dict.fromkeys(("Q", "heads"), layer.query_width),
        **dict.fromkeys(("K", "V"), layer.kv_width),
        "gates": shape.num_heads,
        "stage": 2,
    }
    if "logit_sizes" in constants:
        widths["routed"], widths["shared"] = (int(n) for n in constants["logit_sizes"][:2])
    elif "from" in constants:
        widths["routed"] = shape.num_heads - int(constants["from"][0])
    sizes = [
        constants[name].shape if name in constants else (*layer.x_shape[:2], widths[name])
        for name in node.input
    ]
    types = [TensorType("float32", size) for size in sizes]
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    spec = OPS[node.op_type]
    known = {attribute.name: _text(attributes[attribute.name]) for attribute in spec.attributes}
    return spec.function(types, known, opset=_OPSET)


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def _value_info(name: str, sizes: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)
