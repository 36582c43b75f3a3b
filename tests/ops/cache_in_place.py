"""A layer whose cache is a buffer with room: new keys and values are written where they belong."""

import onnx
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_opsetid, make_tensor_value_info
from onnx.helper import make_node as standard_node

from moh_deploy.ops import MOH_ATTENTION
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.ops.spec import TensorType

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, ROOM = 4, 2, 16, 64
ATTRIBUTES = {
    "q_num_heads": NUM_HEADS,
    "kv_num_heads": NUM_KV_HEADS,
    "scale": HEAD_DIM**-0.5,
    "is_causal": 1,
}
CACHES = {"past_key": "present_key", "past_value": "present_value"}
_OPSET = 24  # the first with TensorScatter

_ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def cache_model(dtype: str = "float32") -> onnx.ModelProto:
    """Return the layer: batch and number of new tokens are dynamic.

    Inputs: Q, key, value [B, H, S, D] and gates [B, S, Hq] of the new tokens, the caches
    [B, Hkv, ROOM, D], and write_indices [B]: how many tokens each sequence has already.
    """
    query, new = ("batch", NUM_HEADS, "seq", HEAD_DIM), ("batch", NUM_KV_HEADS, "seq", HEAD_DIM)
    cache, gates = ("batch", NUM_KV_HEADS, ROOM, HEAD_DIM), ("batch", "seq", NUM_HEADS)
    floats = {"Q": query, "key": new, "value": new, "gates": gates} | dict.fromkeys(CACHES, cache)
    made = {"Y": query} | dict.fromkeys(CACHES.values(), cache)
    nodes = [
        *(
            standard_node("TensorScatter", [past, tensor, "write_indices"], [present], axis=2)
            for (past, present), tensor in zip(CACHES.items(), ("key", "value"), strict=True)
        ),
        standard_node("Shape", ["Q"], ["new_tokens"], start=2, end=3),
        standard_node("Add", ["write_indices", "new_tokens"], ["filled"]),
        make_node(
            MOH_ATTENTION.name,
            ["Q", *CACHES.values(), "gates", "", "filled"],
            ["Y"],
            **ATTRIBUTES,
        ),
    ]
    types = [TensorType(dtype, shape) for shape in (query, cache, cache, gates)]
    lengths = TensorType("int64", ("batch",))
    body = MOH_ATTENTION.function(
        [*types, None, lengths], MOH_ATTENTION.complete(ATTRIBUTES), opset=_OPSET
    )
    element = _ELEMENTS[dtype]
    graph = make_graph(
        nodes,
        "cache_in_place",
        [
            *(make_tensor_value_info(name, element, shape) for name, shape in floats.items()),
            make_tensor_value_info("write_indices", TensorProto.INT64, ("batch",)),
        ],
        [make_tensor_value_info(name, element, shape) for name, shape in made.items()],
    )
    opsets = [
        make_opsetid("", _OPSET),
        make_opsetid(MOH_ATTENTION.domain, MOH_ATTENTION.version),
    ]
    return make_model(graph, opset_imports=opsets, functions=[body], ir_version=11)
