"""The shape rule of MoHAggregatedAttention: the output's type, and what does not fit together."""

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names, spec
from moh_deploy.ops.spec import Attributes, OpDim, TensorType, TensorTypes

_OP = op_names.AGGREGATED_ATTENTION
# In the order of the op's inputs. Axes of one letter have one size in all of them.
_SHAPES: dict[str, tuple[str, ...]] = {
    "Q": ("B", "N", "H*D"),
    "K": ("B", "N", "H*D"),
    "V": ("B", "N", "H*D"),
    "pooled_K": ("B", "P", "H*D"),
    "pooled_V": ("B", "P", "H*D"),
    "gates": ("B", "N", "H"),
    "query_embedding": ("H", "D"),
    "query_scale": ("H", "N"),
    "window_bias": ("H", "L"),
    "pooled_bias": ("H", "N", "P"),
    "window_tokens": ("H", "D", "L"),
    "window_offset": ("H", "L"),
}
REQUIRED = tuple(_SHAPES)[:6]
OPTIONAL = tuple(_SHAPES)[6:]
_AXES = {
    "B": "batch size",
    "N": "number of tokens (height * width)",
    "P": "number of pooled tokens",
    "H": "number of heads",
    "D": "head size",
    "L": "number of window places",
    "H*D": "last size",
}


def aggregated_attention_shape_rule(
    inputs: TensorTypes, attributes: Attributes
) -> tuple[TensorType, ...]:
    """Return the type of Y.

    Args:
        inputs: Types of the inputs, in the order of the op; None for an absent optional one.
    """
    # A node may list fewer inputs than the op has.
    given = dict(zip(_SHAPES, inputs, strict=False))
    for name in REQUIRED:
        spec.required(_OP, name, given.get(name))
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    # Ranks first: the sizes below are read by axis.
    for name, tensor in tensors.items():
        dtypes = spec.FLOAT_TYPES if name == "Q" else (tensors["Q"].dtype,)
        spec.check_tensor(_OP, name, tensor, dtypes, (len(_SHAPES[name]),))
    # One size for each letter, against which every axis is checked.
    sizes = _sizes(tensors, attributes)
    for name, tensor in tensors.items():
        for axis, got in zip(_SHAPES[name], tensor.shape, strict=True):
            spec.check_equal(_OP, f"{_AXES[axis]} of {name}", got, sizes[axis])
    return (TensorType(tensors["Q"].dtype, (sizes["B"], sizes["N"], sizes["H*D"])),)


def _sizes(tensors: dict[str, TensorType], attributes: Attributes) -> dict[str, OpDim]:
    """Return the size of each axis: from the attributes, else from wherever it is known."""
    num_heads = int(attributes["num_heads"])
    sizes: dict[str, OpDim] = {axis: _known(tensors, axis) for axis in ("B", "P", "H*D", "D")}
    hidden = sizes["H*D"]
    if isinstance(hidden, int) and hidden % num_heads:
        raise ExportError(
            f"{_OP}: last size of Q, K and V is {hidden}; "
            f"expected a multiple of the {num_heads} heads."
        )
    if isinstance(hidden, int):
        sizes["D"] = hidden // num_heads
    # Known by an embedding [H, D] or window_tokens [H, D, L] where the last axis is dynamic.
    elif isinstance(sizes["D"], int):
        sizes["H*D"] = num_heads * sizes["D"]
    if sizes["P"] == 0:
        raise ExportError(f"{_OP}: pooled_K has no tokens; expected at least 1.")
    # Attributes fix H, N and L, so only B, P and D may be dynamic.
    window = int(attributes["kernel_height"]) * int(attributes["kernel_width"])
    tokens = int(attributes["height"]) * int(attributes["width"])
    return sizes | {"H": num_heads, "N": tokens, "L": window}


def _known(tensors: dict[str, TensorType], axis: str) -> OpDim:
    """Return the size of an axis from the first input that knows it."""
    found = [
        size
        for name, tensor in tensors.items()
        for label, size in zip(_SHAPES[name], tensor.shape, strict=True)
        if label == axis
    ]
    return spec.known(*found) if found else None
