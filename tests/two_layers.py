"""A package made by hand with a second MoH layer: its router is a MoHRouter, the first one's none.

The second layer attends over what the first one returns; its router sees the same scores.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from moh_deploy.ops import OPS
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.ops.router import RouterVariant
from moh_deploy.ops.router import function_body as router_body
from moh_deploy.package import OnnxPackage, PackageWriter, VectorSet
from tests.handmade_package import ATTRIBUTES, LAYER, MANIFEST, gate_weight, model, vectors
from tests.true_manifest import finish_true

FIRST, SECOND, ROUTER = "blocks.0.attn/moh", "blocks.1.attn/moh", "blocks.1.attn/router"

LAYERS = (
    LAYER,
    replace(
        LAYER,
        path="blocks.1.attn",
        node=SECOND,
        gates="gates_1",
        router="top_k",
        router_replaced=True,
        reason=None,
    ),
)

ROUTING = {"top_k": 2, "num_shared_heads": 0, "gate_mode": "weighted"}


def write_two_layers(output: Path) -> OnnxPackage:
    """Write the package, with one vector set."""
    ops = {**MANIFEST.ops, "moh::MoHRouter": 1}
    with PackageWriter(output) as writer:
        onnx.save(two_layers(), writer.path("model.onnx"))
        return finish_true(writer, replace(MANIFEST, layers=LAYERS, ops=ops), [_vectors()])


def two_layers() -> onnx.ModelProto:
    """Return the package's model."""
    router = make_node("MoHRouter", ["scores"], ["gates_1"], **ROUTING)
    second = make_node("MoHAttention", [*["heads"] * 3, "gates_1"], ["heads_1"], **ATTRIBUTES)
    router.name, second.name = ROUTER, SECOND
    content = model()
    *first, scaled = content.graph.node
    scaled.input[0] = "heads_1"
    nodes = [*first, router, second, scaled]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del content.graph.node[:]
    content.graph.node.extend(copies)
    variant = RouterVariant("weighted", "none", staged=False)
    content.functions.append(router_body(variant, opset=20))
    return content


def _vectors() -> VectorSet:
    one = vectors()
    heads = one.outputs["y"]
    (routed,) = OPS["MoHRouter"].reference((one.inputs["x"] @ gate_weight(), None, None), ROUTING)
    gates = routed.astype(np.float32)
    (y,) = OPS["MoHAttention"].reference((heads, heads, heads, gates, None), ATTRIBUTES)
    return replace(
        one,
        outputs={"y": y.astype(np.float32)},
        gates=(*one.gates, gates),
        margins=one.margins * 2,
    )
