"""What ONNX Runtime offers a user today, as models of the same inputs and output as MoHAttention.

Each computes every head and multiplies the heads with the gates at the end. The model's inputs are
Q, K, V and gates, its output is Y, in the layout that the shape gives.
"""

from collections.abc import Callable, Mapping

import onnx
import onnx.parser
from op_inputs import Shape

from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import TensorType

_ELEMENTS = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


def moh_model(shape: Shape, dtype: str) -> onnx.ModelProto:
    """MoHAttention with its function body: without a kernel library the decomposed graph."""
    shapes = (shape.query_shape, shape.cache_shape, shape.cache_shape, _gates_shape(shape))
    attributes = {
        "q_num_heads": shape.num_heads,
        "kv_num_heads": shape.num_kv_heads,
        "scale": shape.scale,
        "is_causal": int(shape.is_causal),
    }
    types = [TensorType(dtype, sizes) for sizes in shapes]
    model = single_node_model("MoHAttention", types, attributes)
    model.graph.node[0].name = "attention"
    return model


def multi_head_attention(shape: Shape, dtype: str) -> onnx.ModelProto:
    """com.microsoft.MultiHeadAttention; grouped keys and values are repeated first."""
    attributes = f"num_heads={shape.num_heads}, scale={shape.scale!r}"
    if shape.is_causal:
        attributes += ", unidirectional=1"
    return _model(
        shape,
        dtype,
        f"""
        {_tokens_first("Q", "query", shape)}
        {_repeat("K", "key", shape)}
        {_repeat("V", "value", shape)}
        heads = com.microsoft.MultiHeadAttention <{attributes}> (query, key, value)
        """,
    )


def attention_23(shape: Shape, dtype: str) -> onnx.ModelProto:
    """Attention of ONNX opset 23, which groups heads by itself."""
    heads = f"q_num_heads={shape.num_heads}, kv_num_heads={shape.num_kv_heads}"
    attributes = f"scale={shape.scale!r}, is_causal={int(shape.is_causal)}"
    if not shape.is_decode:
        attributes += f", {heads}"
    return _model(shape, dtype, f"heads = Attention <{attributes}> (Q, K, V)")


def group_query_attention(shape: Shape, dtype: str) -> onnx.ModelProto:
    """com.microsoft.GroupQueryAttention: a prefill, or one step on a cache.

    In a step K and V are the cache, and new_K and new_V [B, 1, Hkv*D] what the step writes to its
    end. Bind present_K and present_V to the same memory, or the whole cache is copied.
    """
    attributes = (
        f"num_heads={shape.num_heads}, kv_num_heads={shape.num_kv_heads}, scale={shape.scale!r}"
    )
    last_key = _braces([shape.kv_len - 1] * shape.batch)
    new, past = (("new_K", "new_V"), ("K", "V")) if shape.is_decode else (("K", "V"), ("", ""))
    return _model(
        shape,
        dtype,
        f"""
        {_tokens_first("Q", "query", shape)}
        last = Constant <value = int32[{shape.batch}] {last_key}> ()
        total = Constant <value = int32 {_braces([shape.kv_len])}> ()
        heads, present_K, present_V = com.microsoft.GroupQueryAttention <{attributes}>
            ({", ".join(("query", *new, *past))}, last, total)
        """,
        has_cache=shape.is_decode,
    )


Builder = Callable[[Shape, str], onnx.ModelProto]


def fused_models(shape: Shape) -> Mapping[str, Builder]:
    """Return the fused operators that a user could choose for a shape."""
    models: dict[str, Builder] = {
        "MultiHeadAttention": multi_head_attention,
        "Attention": attention_23,
        "GroupQueryAttention": group_query_attention,
    }
    if shape.is_decode and shape.num_kv_heads < shape.num_heads:
        del models["MultiHeadAttention"]  # It would have to repeat the whole cache.
    if not (shape.is_causal or shape.is_decode):
        del models["GroupQueryAttention"]  # It is causal always.
    return models


def _model(shape: Shape, dtype: str, body: str, *, has_cache: bool = False) -> onnx.ModelProto:
    """Return the model of a body that computes `heads`, [B, S, H*D] or as the shape has it."""
    query, cache = (_type(dtype, sizes) for sizes in (shape.query_shape, shape.cache_shape))
    inputs = f"{query} Q, {cache} K, {cache} V, {_type(dtype, _gates_shape(shape))} gates"
    outputs = f"{query} Y"
    if has_cache:
        new = _type(dtype, (shape.batch, 1, shape.num_kv_heads * shape.head_dim))
        inputs += f", {new} new_K, {new} new_V"
        outputs += f", {cache} present_K, {cache} present_V"
    text = f"""
        <ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
        attention ({inputs}) => ({outputs}) {{
            {body}
            {_weigh(shape)}
        }}"""
    return onnx.parser.parse_model(text)


def _weigh(shape: Shape) -> str:
    """Multiply `heads` with the gates."""
    if shape.is_decode:  # Of one token [B, H, 1, D] and [B, 1, H*D] are the same numbers.
        return f"""
        split = Constant <value_ints = [0, {shape.num_heads}, 1, {shape.head_dim}]> ()
        by_head = Reshape (heads, split)
        column = Constant <value_ints = [0, {shape.num_heads}, 1, 1]> ()
        weights = Reshape (gates, column)
        Y = Mul (by_head, weights)"""
    return f"""
        split = Constant <value_ints = [0, 0, {shape.num_heads}, {shape.head_dim}]> ()
        by_head = Reshape (heads, split)
        last_axis = Constant <value_ints = [-1]> ()
        weights = Unsqueeze (gates, last_axis)
        weighted = Mul (by_head, weights)
        merge = Constant <value_ints = [0, 0, -1]> ()
        Y = Reshape (weighted, merge)"""


def _tokens_first(name: str, result: str, shape: Shape) -> str:
    """Give a query as [B, S, H*D]."""
    if not shape.is_decode:
        return f"{result} = Identity ({name})"
    return f"""
        {name}_merge = Constant <value_ints = [0, 1, -1]> ()
        {result} = Reshape ({name}, {name}_merge)"""


def _repeat(name: str, result: str, shape: Shape) -> str:
    """Repeat each key/value head for the query heads that read it, [B, T, Hkv*D] to [B, T, H*D]."""
    if shape.num_kv_heads == shape.num_heads:
        return f"{result} = Identity ({name})"
    sizes = [shape.batch, shape.kv_len, shape.num_kv_heads]
    group = shape.num_heads // shape.num_kv_heads
    return f"""
        {name}_split = Constant <value_ints = {[*sizes, 1, shape.head_dim]}> ()
        {name}_groups = Reshape ({name}, {name}_split)
        {name}_sizes = Constant <value_ints = {[*sizes, group, shape.head_dim]}> ()
        {name}_repeated = Expand ({name}_groups, {name}_sizes)
        {name}_merge = Constant <value_ints = [0, 0, -1]> ()
        {result} = Reshape ({name}_repeated, {name}_merge)"""


def _gates_shape(shape: Shape) -> tuple[int, ...]:
    return (shape.batch, shape.seq_len, shape.num_heads)


def _type(dtype: str, sizes: tuple[int, ...]) -> str:
    return f"{_ELEMENTS[dtype]}[{','.join(map(str, sizes))}]"


def _braces(values: list[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"
