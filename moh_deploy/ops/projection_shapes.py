"""The shape rules of the projections: the output's type, and which inputs do not fit together."""

from __future__ import annotations

from typing import Literal

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names
from moh_deploy.ops.shape_checks import check_equal, check_tensor, known, required
from moh_deploy.ops.spec import FLOAT_TYPES, Attributes, OpDim, TensorType, TensorTypes

_RANKS = {"X": 3, "W": 2, "gates": 3, "bias": 1}


def query_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of Q, [B, S, H*D].

    Args:
        inputs: Types of X, W, gates and optionally bias.
        attributes: All attributes of the op.

    Raises:
        ExportError: A dtype, rank, head count or size does not fit the others.
    """
    return _shape_rule(op_names.QUERY_PROJECTION, inputs, attributes, "columns")


def output_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of Y, [B, S, C]; see `query_shape_rule`."""
    return _shape_rule(op_names.OUTPUT_PROJECTION, inputs, attributes, "rows")


def _shape_rule(
    op: str, inputs: TensorTypes, attributes: Attributes, heads_axis: Literal["rows", "columns"]
) -> tuple[TensorType, ...]:
    """`heads_axis`: which axis of W the heads divide."""
    num_heads = int(attributes["num_heads"])
    # Filled up, as a node may leave the bias out.
    *given, bias = (*inputs, None, None, None, None)[:4]
    x, weight, gates = (required(op, n, t) for n, t in zip(("X", "W", "gates"), given, strict=True))
    for name, tensor in zip(_RANKS, (x, weight, gates, bias), strict=True):
        if tensor is not None:
            dtypes = FLOAT_TYPES if name == "X" else (x.dtype,)
            check_tensor(op, name, tensor, dtypes, (_RANKS[name],))
    # Columns of the query's W are H*D, rows of the output's.
    _check_heads(op, num_heads, heads_axis, weight.shape[heads_axis == "columns"])
    # X [B, S, rows of W]; gates [B, S, H]; bias [columns of W].
    check_equal(op, "number of rows of W", weight.shape[0], x.shape[2])
    check_equal(op, "batch size of gates", gates.shape[0], x.shape[0])
    check_equal(op, "length of gates", gates.shape[1], x.shape[1])
    check_equal(op, "number of heads in gates", gates.shape[2], num_heads)
    columns = weight.shape[1]
    if bias is not None:
        check_equal(op, "size of bias", bias.shape[0], columns)
        columns = known(columns, bias.shape[0])
    batch, seq_len = known(x.shape[0], gates.shape[0]), known(x.shape[1], gates.shape[1])
    return (TensorType(x.dtype, (batch, seq_len, columns)),)


def _check_heads(op: str, num_heads: int, axis: str, size: OpDim) -> None:
    if isinstance(size, int) and size % num_heads:
        raise ExportError(
            f"{op}: number of {axis} of W is {size}; expected a multiple of its {num_heads} heads."
        )
