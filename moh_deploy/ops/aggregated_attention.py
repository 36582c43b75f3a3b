"""MoHAggregatedAttention: each pixel attends to its window and to a pooled image, in one softmax.

    q'  = q / max(|q|, epsilon)  if normalize, else q; k' and pooled k' the same
    s   = (q' + query_embedding) * query_scale
    w   = softmax over [ s k'[window] + window_bias,  s pooled k' + pooled_bias ]
    Y   = gate * ( (w[window] + q' window_tokens + window_offset) v[window]  +  w[pooled] pooled v )

Source: aggregated attention, TransNeXt, arXiv 2311.17132, section 3.1, with the gates of
Mixture-of-Head attention, arXiv 2410.11842, section 3.2.
"""

from functools import partial

import numpy as np

from moh_deploy.ops import op_names, spec
from moh_deploy.ops.aggregated_attention_function import function_body, variant_of
from moh_deploy.ops.aggregated_attention_shapes import (
    OPTIONAL,
    REQUIRED,
    aggregated_attention_shape_rule,
)
from moh_deploy.ops.spec import FLAG, Arrays, Attributes, AttributeSpec, OpInput, OpSpec, OutputSpec


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute MoHAggregatedAttention in float64, one head at a time.

    Args:
        inputs: In the order of the op, of any supported dtype; None for an absent one.

    Returns:
        Y in float64.
    """
    arrays = [None if a is None else a.astype(np.float64) for a in inputs]
    # Inputs that a node does not list are absent.
    arrays += [None] * (len(REQUIRED) + len(OPTIONAL) - len(arrays))
    heads = int(attributes["num_heads"])
    # [B, N, H*D] to [B, H, N, D]
    query, key, value, pooled_key, pooled_value = (
        array.reshape(*array.shape[:2], heads, array.shape[2] // heads).transpose(0, 2, 1, 3)
        for array in map(spec.float64, arrays[:5])
    )
    if attributes["normalize"]:
        epsilon = float(attributes["epsilon"])
        query, key, pooled_key = (_unit(a, epsilon) for a in (query, key, pooled_key))
    gates_BNH = spec.float64(arrays[5])
    embedding_HD, scale_HN, window_bias_HL, pooled_bias_HNP, tokens_HDL, offset_HL = arrays[6:]
    # -1 outside of the image reads the last token; `inside_NL` takes that out again.
    neighbour_NL = _neighbours(attributes)
    inside_NL = neighbour_NL >= 0

    output_BNHD = np.empty((query.shape[0], query.shape[2], heads, query.shape[3]))
    for b, h in np.ndindex(query.shape[:2]):
        q, k, v = query[b, h], key[b, h], value[b, h]
        with np.errstate(all="ignore"):
            # Scores take the embedded and scaled query, window_tokens the plain one.
            s = (q + _of(embedding_HD, h, 0.0)) * np.reshape(_of(scale_HN, h, 1.0), (-1, 1))
            window_NL = np.einsum("nd,nld->nl", s, k[neighbour_NL]) + _of(window_bias_HL, h, 0.0)
            window_NL = np.where(inside_NL, window_NL, -np.inf)
            pooled_NP = s @ pooled_key[b, h].T + _of(pooled_bias_HNP, h, 0.0)
            # One softmax over L places and P pooled tokens: [N, L + P].
            weights = _softmax(np.concatenate([window_NL, pooled_NP], axis=1))
            window_weights, pooled_weights = np.split(weights, [neighbour_NL.shape[1]], axis=1)

            # Behind the softmax: positional weights that do not depend on keys.
            if tokens_HDL is not None:
                window_weights = window_weights + q @ tokens_HDL[h]
            window_weights = window_weights + _of(offset_HL, h, 0.0)
            # 0 outside of the image, where window_tokens and window_offset give weights, too.
            products_NLD = window_weights[:, :, None] * v[neighbour_NL]
            window_ND = np.where(inside_NL[:, :, None], products_NLD, 0.0).sum(axis=1)
            gate = gates_BNH[b, :, h, None]
            attended = window_ND + pooled_weights @ pooled_value[b, h]
            # 0 for a closed head whatever it computes: 0 * NaN would be NaN.
            output_BNHD[b, :, h] = np.where(gate == 0, 0, gate * attended)
    return (output_BNHD.reshape(*output_BNHD.shape[:2], heads * query.shape[3]),)


def _neighbours(attributes: Attributes) -> np.ndarray:
    """The token at each place of each token's window [N, L]; -1 outside the image."""
    height, width = int(attributes["height"]), int(attributes["width"])
    kernel_height, kernel_width = int(attributes["kernel_height"]), int(attributes["kernel_width"])
    # Row by row, tokens and places alike.
    neighbours = np.full((height * width, kernel_height * kernel_width), -1)
    for y, x, i, j in np.ndindex(height, width, kernel_height, kernel_width):
        row, column = y + i - kernel_height // 2, x + j - kernel_width // 2
        if 0 <= row < height and 0 <= column < width:
            neighbours[y * width + x, i * kernel_width + j] = row * width + column
    return neighbours


def _unit(array: np.ndarray, epsilon: float) -> np.ndarray:
    """Vectors of length 1; those that are shorter than epsilon are divided by it."""
    with np.errstate(all="ignore"):
        length = np.sqrt((array**2).sum(axis=-1, keepdims=True))
        unit: np.ndarray = array / np.maximum(length, epsilon)
    return unit


def _softmax(scores: np.ndarray) -> np.ndarray:
    # A token is always in its own window, so there is a score to take the maximum of.
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return weights


def _of(array: np.ndarray | None, head: int, neutral: float) -> np.ndarray | float:
    """Return an optional input's part for a head, or the neutral value where it is absent."""
    if array is None:
        return neutral
    part: np.ndarray = array[head]
    return part


_size = partial(AttributeSpec, at_least=1)


MOH_AGGREGATED_ATTENTION = OpSpec(
    name=op_names.AGGREGATED_ATTENTION,
    doc="Gated attention of each pixel to its window and to a pooled image, in one softmax.",
    inputs=(
        OpInput("Q", "Queries, [B, N, H*D]: `N = height * width` pixels, row by row."),
        OpInput("K", "Keys, [B, N, H*D]."),
        OpInput("V", "Values, [B, N, H*D]."),
        OpInput("pooled_K", "Keys of the pooled image, [B, P, H*D]: at least one token."),
        OpInput("pooled_V", "Values of the pooled image, [B, P, H*D]."),
        OpInput("gates", "[B, N, H], of any sign; 0 means that the token did not choose the head."),
        OpInput("query_embedding", "[H, D], added to the query of the scores.", optional=True),
        OpInput(
            "query_scale",
            "[H, N], factor of the scores: temperature and length scale in one. Absent: 1.",
            optional=True,
        ),
        OpInput(
            "window_bias",
            "[H, L], added to the window's scores: `L = kernel_height * kernel_width` places, "
            "row by row from the upper left one.",
            optional=True,
        ),
        OpInput("pooled_bias", "[H, N, P], added to the pooled scores.", optional=True),
        OpInput(
            "window_tokens",
            "[H, D, L], whose product with the query is added to the window's weights.",
            optional=True,
        ),
        OpInput("window_offset", "[H, L], added to the window's weights.", optional=True),
    ),
    outputs=(OutputSpec("Y", "[B, N, H*D]."),),
    attributes=(
        _size("num_heads", "`H`; head h has the channels from `h*D` up to `(h+1)*D`."),
        _size("height", "Rows of the image."),
        _size("width", "Columns of the image."),
        _size(
            "kernel_height",
            "Rows of the window; its centre is the token itself. It may be larger than the image.",
            odd=True,
        ),
        _size("kernel_width", "Columns of the window.", odd=True),
        AttributeSpec(
            "normalize",
            "1: queries, keys and pooled keys get length 1. The embedding does not.",
            default=0,
            choices=FLAG,
        ),
        AttributeSpec(
            "epsilon",
            "The least length that vectors are divided by.",
            "float",
            default=1e-12,
            above=0.0,
        ),
    ),
    reference=reference,
    shape_rule=aggregated_attention_shape_rule,
    variant=variant_of,
    body=function_body,
)
