"""What a recognised core says, computed: the opposite direction of recognition."""

import string
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, flat, leaves
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.recognize.layer import Core, MaskTerm

Values = Mapping[Node, Tensor]


def attend(core: Core, values: Values) -> Tensor:
    """Compute the output of an attention from nothing but its description."""
    scores, keys = core.scores, leaves(core.scores.key_axes)
    rows = [axis for axis in flat(core.output.layout) if axis not in leaves(core.value_axes)]
    product = contract([scores.query, scores.key], [*rows, *keys], values) * scores.scale
    for factor in scores.factors:
        multiplier = aligned(factor.operand, [*rows, *keys], values)
        product = product / multiplier if factor.divides else product * multiplier
    for mask in scores.masks:
        product = masked(product, mask, aligned(mask.operand, [*rows, *keys], values))
    if scores.is_causal:
        product = causal(product, rows.index(token(core)), len(rows))
    # A query that sees no key has no weights.
    weights = product.flatten(len(rows)).softmax(-1).nan_to_num(0.0).reshape(product.shape)
    letters = letters_of([*rows, *keys, *flat(core.value.layout)])
    equation = ",".join(
        "".join(letters[axis] for axis in axes)
        for axes in ([*rows, *keys], flat(core.value.layout))
    )
    out = "".join(letters[axis] for axis in flat(core.output.layout))
    result = torch.einsum(f"{equation}->{out}", weights, whole(core.value, values))
    return result.reshape(core.output.node.meta["val"].shape)


def contract(operands: Sequence[Operand], axes: Sequence[Axis], values: Values) -> Tensor:
    letters = letters_of([*axes, *(axis for operand in operands for axis in flat(operand.layout))])
    terms = ["".join(letters[axis] for axis in flat(operand.layout)) for operand in operands]
    present = [axis for axis in axes if any(axis in flat(operand.layout) for operand in operands)]
    out = "".join(letters[axis] for axis in present)
    result = torch.einsum(
        f"{','.join(terms)}->{out}", *(whole(operand, values) for operand in operands)
    )
    return result[tuple(slice(None) if axis in present else None for axis in axes)]


def aligned(operand: Operand, axes: Sequence[Axis], values: Values) -> Tensor:
    """A tensor with its dimensions in the order of `axes`, size 1 where it has none."""
    return contract([operand], axes, values)


def masked(scores: Tensor, mask: MaskTerm, value: Tensor) -> Tensor:
    if mask.kind == "add":
        return scores + value * mask.value
    hidden = value if mask.kind == "drop" else ~value.bool()
    return scores.masked_fill(hidden, -torch.inf if mask.value == 1 else mask.value)


def causal(scores: Tensor, row: int, column: int) -> Tensor:
    visible = torch.ones(scores.shape[row], scores.shape[column], dtype=torch.bool).tril()
    shape = [n if dim in (row, column) else 1 for dim, n in enumerate(scores.shape)]
    return scores.masked_fill(~visible.reshape(shape), -torch.inf)


def token(core: Core) -> Axis:
    """The axis of the output that the query has and the key has not."""
    query, key = flat(core.scores.query.layout), flat(core.scores.key.layout)
    return next(axis for axis in flat(core.output.layout) if axis in query and axis not in key)


def whole(operand: Operand, values: Values) -> Tensor:
    """A tensor with one dimension for each of its axes."""
    tensor = values[operand.node]
    return tensor.reshape([int(axis.size) for axis in flat(operand.layout)])


def letters_of(axes: Sequence[Axis]) -> dict[Axis, str]:
    return dict(zip(dict.fromkeys(axes), string.ascii_letters, strict=False))
