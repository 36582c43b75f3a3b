"""A package of two MoH layers whose routers are MoHRouter nodes, and what can be wrong with it.

The first layer weighs two shared and four routed heads in two stages, the second chooses two of six
by a mask. Both attend to valid tokens only.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.ops.attention_function import AttentionVariant
from moh_deploy.ops.attention_function import function_body as attention_body
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.ops.router import RouterVariant
from moh_deploy.ops.router import function_body as router_body
from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from tests.handmade_package import LAYER, MANIFEST
from tests.true_manifest import finish_true

HEADS, HEAD_DIM, SHARED, TOP_K = 6, 4, 2, 2
WIDTH, BATCH, SEQ = HEADS * HEAD_DIM, 2, 5

LAYERS = tuple(
    replace(
        LAYER,
        path=f"blocks.{i}.attn",
        node=f"attn_{i}",
        gates=f"gates_{i}",
        router=router,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        num_shared_heads=shared,
        top_k=TOP_K,
        router_replaced=True,
        reason=None,
        seq_len=SEQ,
        kv_len=SEQ,
        op="MoHAttention",
    )
    for i, (router, shared) in enumerate([("two_stage", SHARED), ("mask", 0)])
)

INPUTS = (
    TensorInfo("x", "float32", ("batch", "seq", WIDTH)),
    TensorInfo("valid", "bool", ("batch", "seq")),
)

Plant = Callable[[onnx.ModelProto], None]


def write_edge_package(output: Path, plant: Plant | None = None) -> OnnxPackage:
    """Write the package; `plant` changes its model, but not what was recorded."""
    manifest = replace(
        MANIFEST,
        inputs=INPUTS,
        outputs=(TensorInfo("y", "float32", ("batch", "seq", WIDTH)),),
        dims={"batch": BATCH, "seq": SEQ},
        layers=LAYERS,
        ops={"moh::MoHAttention": 1, "moh::MoHRouter": 1, "moh.2::MoHRouter": 1},
    )
    right = output.with_name(f"{output.name}.onnx")
    onnx.save(_model(), right)
    with PackageWriter(output) as writer:
        model = _model()
        if plant is not None:
            plant(model)
        onnx.save(model, writer.path("model.onnx"))
        return finish_true(writer, manifest, [_record(right)])


def inputs(*, batch: int = BATCH, seq: int = SEQ, seed: int = 1) -> dict[str, Array]:
    """Return what the model takes; the last token of every sequence but the first is padding."""
    x = np.random.default_rng(seed).standard_normal((batch, seq, WIDTH)).astype(np.float32)
    valid = np.ones((batch, seq), bool)
    valid[1:, -1] = False
    return {"x": x, "valid": valid}


def _record(path: Path) -> VectorSet:
    names = [f"gates_{i}" for i in range(2)]
    runner = open_runner(path, Variant(kernels="off", optimize=False, extra_outputs=tuple(names)))
    given = inputs()
    found = runner.run(given)
    gates = tuple(found[name] for name in names)
    margins = tuple(np.full(gate.shape[:-1], 1.0, np.float32) for gate in gates)
    return VectorSet({"batch": BATCH, "seq": SEQ}, given, {"y": found["y"]}, gates, margins)


def _model() -> onnx.ModelProto:
    draw = np.random.default_rng(0)
    sizes = {
        "routed_weight_0": HEADS - SHARED,
        "shared_weight_0": SHARED,
        "stage_weight_0": 2,
        "routed_weight_1": HEADS,
        **{f"{name}_weight_{i}": WIDTH for name in "qkvo" for i in range(2)},
    }
    weights = {name: 0.3 * draw.standard_normal((WIDTH, size)) for name, size in sizes.items()}
    nodes = [
        helper.make_node("Identity", ["x"], ["x_0"]),
        helper.make_node("Unsqueeze", ["valid", "mask_axes"], ["mask"]),  # [B, 1, 1, S]
        *_layer(0, ("routed", "shared", "stage"), SHARED, "weighted"),
        *_layer(1, ("routed",), 0, "mask"),
        helper.make_node("Identity", ["x_2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "edges",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", WIDTH]),
            helper.make_tensor_value_info("valid", TensorProto.BOOL, ["batch", "seq"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", WIDTH])],
        [
            numpy_helper.from_array(np.asarray([1, 2], np.int64), "mask_axes"),
            *(numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()),
        ],
    )
    staged = RouterVariant("weighted", "softmax", staged=True)
    masked = RouterVariant("mask", "none", staged=False)
    bodies = [
        router_body(staged, opset=20),
        router_body(masked, opset=20),
        attention_body(AttentionVariant(3, "bool", is_causal=False, grouped=False), opset=20),
    ]
    bodies[1].domain = "moh.2"
    opsets = [helper.make_opsetid(*item) for item in (("", 20), ("moh", 1), ("moh.2", 1))]
    return helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)


def _layer(i: int, ports: tuple[str, ...], shared: int, mode: str) -> list[onnx.NodeProto]:
    """x_(i+1) = x_i + MoHAttention(...) @ o."""
    x = f"x_{i}"
    named = [*ports, "q", "k", "v"]
    nodes = [helper.make_node("MatMul", [x, f"{n}_weight_{i}"], [f"{n}_{i}"]) for n in named]
    routing = {"top_k": TOP_K, "num_shared_heads": shared, "gate_mode": mode}
    router = make_node("MoHRouter", [f"{port}_{i}" for port in ports], [f"gates_{i}"], **routing)
    router.name, router.domain = f"router_{i}", "moh" if i == 0 else "moh.2"
    heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 0.5, "is_causal": 0}
    read = [f"q_{i}", f"k_{i}", f"v_{i}", f"gates_{i}", "mask"]
    attention = make_node("MoHAttention", read, [f"heads_{i}"], **heads)
    attention.name = f"attn_{i}"
    return [
        *nodes,
        router,
        attention,
        helper.make_node("MatMul", [f"heads_{i}", f"o_weight_{i}"], [f"made_{i}"]),
        helper.make_node("Add", [x, f"made_{i}"], [f"x_{i + 1}"]),
    ]
