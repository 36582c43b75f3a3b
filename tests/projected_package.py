"""A package made by hand whose MoH layer has projections of queries and output as operators."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.ops import OPS
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.ops.spec import TensorType
from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.system.npz import Array
from tests.handmade_package import (
    ATTRIBUTES,
    BODY,
    LAYER,
    MANIFEST,
    NUM_HEADS,
    WIDTH,
    gate_weight,
)
from tests.true_manifest import finish_true

FEATURES = 6
QUERY, ATTENTION, OUTPUT = "blocks.0.attn/q", "blocks.0.attn/moh", "blocks.0.attn/o"

PROJECTED_LAYER = replace(
    LAYER, op="MoHAttention", query_projection=QUERY, output_projection=OUTPUT
)


def write_projected(output: Path) -> OnnxPackage:
    """Write the package, with one vector set."""
    ops = {
        "moh::MoHAttention": 1,
        "moh::MoHQueryProjection": 1,
        "moh::MoHOutputProjection": 1,
    }
    outputs = (TensorInfo("y", "float32", ("batch", "seq", FEATURES)),)
    manifest = replace(MANIFEST, layers=(PROJECTED_LAYER,), ops=ops, outputs=outputs)
    with PackageWriter(output) as writer:
        onnx.save(_model(), writer.path("model.onnx"))
        return finish_true(writer, manifest, [_vectors()])


def _weights() -> tuple[Array, Array]:
    """[WIDTH, WIDTH] before, [WIDTH, FEATURES] after."""
    rng = np.random.default_rng(11)
    query, output = rng.standard_normal((WIDTH, WIDTH)), rng.standard_normal((WIDTH, FEATURES))
    return query.astype(np.float32), output.astype(np.float32)


def _model() -> onnx.ModelProto:
    query_weight, output_weight = _weights()
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"], name="router"),
        helper.make_node("Relu", ["scores"], ["gates_0"], name="relu"),
        make_node("MoHQueryProjection", ["x", "wq", "gates_0"], ["q"], num_heads=NUM_HEADS),
        make_node("MoHAttention", ["q", "x", "x", "gates_0"], ["heads"], **ATTRIBUTES),
        make_node("MoHOutputProjection", ["heads", "wo", "gates_0"], ["y"], num_heads=NUM_HEADS),
    ]
    for name, node in zip((QUERY, ATTENTION, OUTPUT), nodes[2:], strict=True):
        node.name = name
    constants = {"weight": gate_weight(), "wq": query_weight, "wo": output_weight}
    graph = helper.make_graph(
        nodes,
        "projected",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", FEATURES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    gates = TensorType("float32", ("batch", "seq", NUM_HEADS))
    bodies = [BODY]
    for op, weight in (
        ("MoHQueryProjection", query_weight),
        ("MoHOutputProjection", output_weight),
    ):
        x = TensorType("float32", ("batch", "seq", WIDTH))
        types = (x, TensorType("float32", weight.shape), gates)
        bodies.append(OPS[op].function(types, {"num_heads": NUM_HEADS}, opset=20))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("moh", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)


def _vectors() -> VectorSet:
    query_weight, output_weight = _weights()
    x = np.random.default_rng(5).standard_normal((2, 3, WIDTH)).astype(np.float32)
    gates = np.maximum(x @ gate_weight(), 0)
    inputs = (x @ query_weight, x, x, gates, None)
    (heads,) = OPS["MoHAttention"].reference(inputs, ATTRIBUTES)
    y = (heads @ output_weight).astype(np.float32)
    margins = np.full(gates.shape[:-1], np.inf, np.float32)
    return VectorSet({"batch": 2, "seq": 3}, {"x": x}, {"y": y}, (gates,), (margins,))
