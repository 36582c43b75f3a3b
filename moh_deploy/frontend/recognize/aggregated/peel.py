"""Peel off a query or key what is known beforehand: unit length, a shift and a scale."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, flat, leaves, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import argument, is_tensor, op
from moh_deploy.frontend.fx.known_values import KnownValues
from moh_deploy.frontend.fx.views import backward, broadcast, casts, is_view


@dataclass(frozen=True)
class Rows:
    """Axes of a query or key: heads, rows (tokens, or tokens and taps), the head dimension."""

    heads: Dim
    rows: Dim
    head_dim: Dim

    @property
    def groups(self) -> tuple[Dim, Dim, Dim]:
        return (self.heads, self.rows, self.head_dim)


@dataclass(frozen=True)
class Peeled:
    """`scale * (unit(source) + shift)`, or without the unit length."""

    source: Operand  # what remains
    scale: Tensor  # [H, R, 1]; a size may be 1
    shift: Tensor  # [H, R, D]; a size may be 1
    # The smallest norm that `unit` divides by; None where nothing is normalised.
    epsilon: float | None
    unit: Operand  # the normalised tensor; `source` where nothing is normalised


def peel(operand: Operand, rows: Rows, known: KnownValues, *, is_query: bool) -> Peeled:
    """Read what was done to a query or key, back to where it depends on the input otherwise.

    Args:
        is_query: Shifts and scales for each row are read as well.
    """
    # TransNeXt: s = (q / |q| + query_embedding) * query_scale. Undone from the outside: the last
    # operation first, so that `scale * node + shift` is the operand at every step.
    node, layout = operand.node, resolve(operand.layout)
    scale = torch.ones(1, 1, 1, dtype=torch.float64)
    shift = torch.zeros(1, 1, 1, dtype=torch.float64)  # of the whole: scale * source + shift
    while True:
        length = read_unit_length(node, layout, rows.head_dim)
        if length is not None:
            source, epsilon = length
            unit = Operand(node, layout)
            return Peeled(Operand(source, layout), scale, shift / scale, epsilon, unit)
        if is_view(node) and not casts(node) and (step := backward(node, layout)) is not None:
            node, layout = step[0], resolve(step[1])
            continue
        change = _change(node, layout, rows, known)
        if change is None:
            break
        source, factor, addend = change
        # Keys have one scale for all rows, and no shift.
        if not is_query and (factor.shape[1] != 1 or bool(addend.any())):
            break
        # scale * (factor * x + addend) + shift
        shift, scale, node = shift + scale * addend, scale * factor, source
    # The shift is inside the scale in the op's formula: it cannot be where the scale is 0.
    if bool((scale == 0).any()):
        return Peeled(
            operand, torch.ones_like(scale[:1, :1]), torch.zeros_like(shift), None, operand
        )
    rest = Operand(node, layout)
    return Peeled(rest, scale, shift / scale, None, rest)


def _change(
    node: Node, layout: Layout, rows: Rows, known: KnownValues
) -> tuple[Node, Tensor, Tensor] | None:
    """Read `factor * source + addend`: the source, the factor and the addend."""
    name = op(node)
    scales = name in ("mul", "multiply", "div", "divide", "true_divide")
    if not scales and name not in ("add", "sub", "subtract"):
        return None
    found = operand_and_known(node, layout, rows.groups, known)
    if found is None:
        return None
    source, value, position = found
    if scales:
        divides = name not in ("mul", "multiply")
        # The op has one scale a row; a scale for each entry of the head dimension does not fit.
        if value.shape[2] != 1 or (divides and position == 1):
            return None
        return source, 1 / value if divides else value, torch.zeros_like(value)
    alpha = argument(node, "alpha", 1)
    if not isinstance(alpha, (int, float)):
        return None
    weight = -alpha if name.startswith("sub") else alpha
    if position == 1 and weight != 1:
        return None
    return source, torch.ones(1, 1, 1, dtype=torch.float64), weight * value


def operand_and_known(
    node: Node, layout: Layout, groups: tuple[Dim, ...], known: KnownValues
) -> tuple[Node, Tensor, int] | None:
    """The operand of full shape that depends on the input, the other one's value, and the position
    of the first.

    Returns:
        The value has one dimension for each group of axes; None where the node has no such
        operands.
    """
    # x + shift or shift + x, x of [B, H, N, D] and shift of [H, 1, D], say.
    for position in (0, 1):
        source, other = node.args[position], node.args[1 - position]
        if not isinstance(source, Node) or not known.varies(source):
            continue
        aligned = broadcast(source, layout)
        if aligned is None or set(flat(aligned)) != set(flat(layout)):
            continue
        value = value_over(other, layout, groups, known)
        if value is not None:
            return source, value, position
    return None


def value_over(
    value: object, layout: Layout, groups: tuple[Dim, ...], known: KnownValues
) -> Tensor | None:
    """A number or a known tensor that is broadcast to `layout`, as a tensor over groups of axes."""
    if isinstance(value, (int, float)):
        return torch.full([1] * len(groups), float(value), dtype=torch.float64)
    if not isinstance(value, Node) or not is_tensor(value) or known.varies(value):
        return None
    aligned = broadcast(value, layout)
    return None if aligned is None else known.over(Operand(value, aligned), groups)


def read_unit_length(node: Node, layout: Layout, head_dim: Dim) -> tuple[Node, float] | None:
    """Read `x / max(|x|, epsilon)` along the head dimension: x and epsilon."""
    if op(node) not in ("div", "divide", "true_divide"):
        return None
    # F.normalize: x / x.norm(2, dim, keepdim=True).clamp_min(eps).expand_as(x)
    source, divisor = node.args[:2]
    if not isinstance(source, Node) or not isinstance(divisor, Node):
        return None
    norm = divisor
    # The norm [..., 1] may be expanded to the size of x first.
    while op(norm) in ("expand", "expand_as", "broadcast_to", "contiguous", "clone"):
        norm = cast(Node, norm.args[0])
    if op(norm) not in ("clamp", "clamp_min") or argument(norm, "max") is not None:
        return None
    epsilon, norm = argument(norm, "min"), cast(Node, norm.args[0])
    if not isinstance(epsilon, (int, float)) or epsilon <= 0:
        return None
    dims = _norm_dims(norm, source)
    if dims is None or {axis for dim in dims for axis in leaves(layout[dim])} != set(
        leaves(head_dim)
    ):
        return None
    return source, float(epsilon)


def _norm_dims(node: Node, source: Node) -> list[int] | None:
    """Dimensions that a Euclidean norm of `source` that keeps them is over."""
    # x.norm(2, dim, keepdim=True), or (x * x).sum(dim, keepdim=True).sqrt()
    if op(node) == "sqrt":
        # The root of a sum of squares.
        node = cast(Node, node.args[0])
        if op(node) != "sum":
            return None
        squares = cast(Node, node.args[0])
        is_square = (
            (op(squares) == "pow" and squares.args[1] == 2)
            or (op(squares) in ("mul", "multiply") and squares.args[1] is squares.args[0])
            or op(squares) == "square"
        )
        if not is_square or squares.args[0] is not source:
            return None
    else:
        is_norm = op(node) in ("linalg_vector_norm", "norm") and node.args[0] is source
        order = "ord" if op(node) == "linalg_vector_norm" else "p"
        if not is_norm or argument(node, order, 2) not in (2, None):
            return None
    dims = argument(node, "dim")
    if not isinstance(dims, (list, tuple)) or not argument(node, "keepdim", False):
        return None
    return [cast(int, dim) for dim in dims]


def same_query(first: Peeled, second: Peeled, dims: tuple[Dim, Dim]) -> bool:
    """True where both are made of one tensor, whose head dimension has a name in each."""

    def marked(operand: Operand, head_dim: Dim) -> list[list[Axis | int]]:
        marks: dict[Axis, int] = {axis: index for index, axis in enumerate(leaves(head_dim))}
        return [[marks.get(axis, axis) for axis in dim] for dim in resolve(operand.layout)]

    a, b = first.source, second.source
    if first.epsilon != second.epsilon or a.node is not b.node:
        return False
    return marked(a, dims[0]) == marked(b, dims[1])


def close(a: Tensor, b: Tensor) -> bool:
    """Tell whether tensors are equal up to rounding to float32."""
    return bool(torch.isclose(a, b, rtol=1e-5, atol=1e-7).all())
