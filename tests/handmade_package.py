"""A package made by hand, without torch: one tiny MoH layer, its reference computed in float64."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.ops import OPS
from moh_deploy.ops.attention_function import AttentionVariant, function_body
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.package import (
    ComputeType,
    LayerInfo,
    Manifest,
    OnnxPackage,
    PackageWriter,
    Proof,
    TensorInfo,
    VectorSet,
)
from moh_deploy.system.npz import Array
from tests.true_manifest import finish_true

NUM_HEADS, HEAD_DIM = 4, 2
WIDTH = NUM_HEADS * HEAD_DIM

LAYER = LayerInfo(
    path="blocks.0.attn",
    num_heads=NUM_HEADS,
    num_kv_heads=NUM_HEADS,
    head_dim=HEAD_DIM,
    num_shared_heads=None,
    top_k=None,
    router="custom",
    router_replaced=False,
    replaced=True,
    reason="router: no known form",
    node="blocks.0.attn/moh",
    gates="gates_0",
    batch=2,
    seq_len=3,
    kv_len=3,
    active_share=11 / 24,
)

ATTRIBUTES = {"q_num_heads": NUM_HEADS, "kv_num_heads": NUM_HEADS, "scale": 0.5, "is_causal": 0}
BODY = function_body(AttentionVariant(3, None, is_causal=False, grouped=False), opset=20)

MANIFEST = Manifest(
    inputs=(TensorInfo("x", "float32", ("batch", "seq", WIDTH)),),
    outputs=(TensorInfo("y", "float32", ("batch", "seq", WIDTH)),),
    dims={"batch": 2, "seq": 3},
    layers=(LAYER,),
    ops={"moh::MoHAttention": 1},
    opset=20,
    total_flops=10_000,
    precision="float32",
    checkpoint_sha256=None,
    made_with={"moh-deploy": "0.1.0"},
    proof=Proof(1e-7, 1.0, ({"batch": 2, "seq": 3},)),
)


def gate_weight() -> Array:
    """Return the router's weight [WIDTH, NUM_HEADS]."""
    return np.random.default_rng(7).standard_normal((WIDTH, NUM_HEADS)).astype(np.float32)


def model(*, with_layer: bool = True, scale: float = 1.0) -> onnx.ModelProto:
    """Return y = scale * MoHAttention(x, x, x, gates), with gates = relu(x @ weight)."""
    layer = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"], name="router"),
        helper.make_node("Relu", ["scores"], ["gates_0"], name="relu"),
        make_node("MoHAttention", ["x", "x", "x", "gates_0"], ["heads"], **ATTRIBUTES),
        helper.make_node("Mul", ["heads", "scale"], ["y"], name="scaled"),
    ]
    layer[2].name = "blocks.0.attn/moh"
    shape = ["batch", "seq", WIDTH]
    graph = helper.make_graph(
        layer if with_layer else [helper.make_node("Mul", ["x", "scale"], ["y"])],
        "handmade",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(gate_weight(), "weight"),
            numpy_helper.from_array(np.float32(scale).reshape(1), "scale"),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("moh", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[BODY], ir_version=10)


def vectors(*, batch: int = 2, seq: int = 3, seed: int = 0, with_layer: bool = True) -> VectorSet:
    """Return what the original computes."""
    x = np.random.default_rng(seed).standard_normal((batch, seq, WIDTH)).astype(np.float32)
    gates = np.maximum(x @ gate_weight(), 0)  # [B, S, H]
    y = _attention(x, gates) if with_layer else x
    margins = np.full(gates.shape[:-1], np.inf, np.float32)
    recorded = ((gates,), (margins,)) if with_layer else ((), ())
    return VectorSet({"batch": batch, "seq": seq}, {"x": x}, {"y": y}, *recorded)


def write_package(
    output: Path,
    *,
    with_layer: bool = True,
    scale: float = 1.0,
    external_data: bool = False,
    compute_type: ComputeType = "float32",
    sets: tuple[VectorSet, ...] | None = None,
) -> OnnxPackage:
    """Write the package; `scale` other than 1 plants a wrong export."""
    recorded = sets if sets is not None else (vectors(with_layer=with_layer),)
    with PackageWriter(output) as writer:
        onnx.save(
            model(with_layer=with_layer, scale=scale),
            writer.path("model.onnx"),
            save_as_external_data=external_data,
            location="model.onnx.data",
            size_threshold=0,
        )
        manifest = MANIFEST if with_layer else without_layers()
        return finish_true(writer, replace(manifest, compute_type=compute_type), recorded)


def without_layers() -> Manifest:
    """Return the manifest of a model without MoH layers."""
    return replace(MANIFEST, layers=(), ops={})


def _attention(x: Array, gates: Array) -> Array:
    (y,) = OPS["MoHAttention"].reference((x, x, x, gates, None), ATTRIBUTES)
    return y.astype(np.float32)
