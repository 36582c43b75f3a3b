"""A package made by hand whose layer has grouped heads, [B, H, S, D], behind stored projections.

Six query heads share three key/value heads. One is on for every token, a MoHRouter chooses two of
the others. The reference is the model itself, as function bodies.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.ops.attention_function import AttentionVariant, function_body
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.ops.router import RouterVariant
from moh_deploy.ops.router import function_body as router_body
from moh_deploy.package import Manifest, OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.runtime.base import FUNCTION_BODIES
from moh_deploy.runtime.open_runner import open_runner
from tests.handmade_package import LAYER, MANIFEST
from tests.true_manifest import finish_true

HEADS, KV_HEADS, HEAD_DIM, WIDTH = 6, 3, 4, 8
ROUTING = {"top_k": 2, "num_shared_heads": 1, "gate_mode": "weighted"}
PATH = "blocks.0.attn"

LAYER_INFO = replace(
    LAYER,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    num_shared_heads=1,
    top_k=2,
    router="top_k",
    router_replaced=True,
    reason=None,
    op="MoHAttention",
    gates="gates",
)

SECOND = replace(LAYER_INFO, path="blocks.1.attn", node="blocks.1.attn/moh")


def write_grouped(output: Path, *, returns_keys: bool = False, twice: bool = False) -> OnnxPackage:
    """Write the package, with one vector set.

    Args:
        returns_keys: The keys are an output, as those of a cache are.
        twice: A second layer with the same weights reads what the first one makes, and its gates.
    """
    outputs = [TensorInfo("y", "float32", ("batch", "seq", WIDTH))]
    if returns_keys:
        outputs.append(TensorInfo("k", "float32", ("batch", KV_HEADS, "seq", HEAD_DIM)))
    manifest = replace(
        MANIFEST,
        layers=(LAYER_INFO, SECOND) if twice else (LAYER_INFO,),
        outputs=tuple(outputs),
        ops={"moh::MoHAttention": 1, "moh::MoHRouter": 1},
    )
    with PackageWriter(output) as writer:
        model = _grouped(outputs)
        if twice:
            _repeat(model.graph)
        onnx.save(model, writer.path("model.onnx"))
        return finish_true(writer, manifest, [_run(writer.root, manifest, outputs)])


def _repeat(graph: onnx.GraphProto) -> None:
    """Let the nodes behind the router stand a second time, for what the first ones make."""
    weights = {tensor.name for tensor in graph.initializer}
    renamed = {name: f"{name}_2" for node in graph.node[2:] for name in node.output}
    renamed |= {"x": "y"}
    for node in list(graph.node[2:]):
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.name = SECOND.node if node.op_type == "MoHAttention" else f"{node.name}_2"
        kept = {*weights, "gates"}
        copy.input[:] = [item if item in kept else renamed[item] for item in node.input]
        copy.output[:] = [renamed[item] for item in node.output]
        graph.node.append(copy)
    # The model returns what the second one makes, by the name that it had.
    for node in graph.node:
        names = {"y": "first", "y_2": "y"}
        node.input[:] = [names.get(item, item) for item in node.input]
        node.output[:] = [names.get(item, item) for item in node.output]


def _run(root: Path, manifest: Manifest, outputs: list[TensorInfo]) -> VectorSet:
    unproven = OnnxPackage(root, manifest, ())
    x = np.random.default_rng(3).standard_normal((2, 3, WIDTH)).astype(np.float32)
    with open_runner(unproven, FUNCTION_BODIES.returning(["gates"])) as runner:
        found = runner.run({"x": x})
    gates = (found["gates"],) * len(manifest.layers)
    margins = (np.full((2, 3), np.inf, np.float32),) * len(gates)
    return VectorSet(
        {"batch": 2, "seq": 3},
        {"x": x},
        {output.name: found[output.name] for output in outputs},
        gates,
        margins,
    )


def _grouped(outputs: list[TensorInfo]) -> onnx.ModelProto:
    rng = np.random.default_rng(1)

    def weight(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    constants = {
        "wq": weight(WIDTH, HEADS * HEAD_DIM),
        "bq": weight(HEADS * HEAD_DIM),
        "wk": weight(WIDTH, KV_HEADS * HEAD_DIM),
        "wv": weight(WIDTH, KV_HEADS * HEAD_DIM),
        "wr": weight(WIDTH, HEADS - 1),
        "wo": weight(HEADS * HEAD_DIM, WIDTH),
        "norm": weight(HEAD_DIM),
        "heads": np.array([0, 0, HEADS, HEAD_DIM]),
        "kv_heads": np.array([0, 0, KV_HEADS, HEAD_DIM]),
        "merged": np.array([0, 0, HEADS * HEAD_DIM]),
    }
    swap = {"perm": [0, 2, 1, 3]}
    attributes = {"q_num_heads": HEADS, "kv_num_heads": KV_HEADS, "scale": 0.5, "is_causal": 0}
    nodes = [
        helper.make_node("MatMul", ["x", "wr"], ["logits"]),
        make_node("MoHRouter", ["logits"], ["gates"], **ROUTING),
        helper.make_node("MatMul", ["x", "wq"], ["q_rows"]),
        helper.make_node("Add", ["q_rows", "bq"], ["q_added"]),
        helper.make_node("Reshape", ["q_added", "heads"], ["q_heads"]),
        helper.make_node("Mul", ["q_heads", "norm"], ["q_scaled"]),
        helper.make_node("Transpose", ["q_scaled"], ["q"], **swap),
        helper.make_node("MatMul", ["x", "wk"], ["k_rows"]),
        helper.make_node("Reshape", ["k_rows", "kv_heads"], ["k_heads"]),
        helper.make_node("Transpose", ["k_heads"], ["k"], **swap),
        helper.make_node("MatMul", ["x", "wv"], ["v_rows"]),
        helper.make_node("Reshape", ["v_rows", "kv_heads"], ["v_heads"]),
        helper.make_node("Transpose", ["v_heads"], ["v"], **swap),
        make_node("MoHAttention", ["q", "k", "v", "gates"], ["y_heads"], **attributes),
        helper.make_node("Transpose", ["y_heads"], ["y_tokens"], **swap),
        helper.make_node("Reshape", ["y_tokens", "merged"], ["y_rows"]),
        helper.make_node("MatMul", ["y_rows", "wo"], ["y"]),
    ]
    for number, node in enumerate(nodes):
        node.name = f"node_{number}"
    nodes[1].name, nodes[13].name = f"{PATH}/router", f"{PATH}/moh"
    graph = helper.make_graph(
        nodes,
        "grouped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", WIDTH])],
        [helper.make_tensor_value_info(o.name, TensorProto.FLOAT, o.shape) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    variant = AttentionVariant(4, None, is_causal=False, grouped=True)
    bodies = [
        function_body(variant, opset=20),
        router_body(RouterVariant(routed="weighted", shared="ones", staged=False), opset=20),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("moh", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)
