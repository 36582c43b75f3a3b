"""Axes with an identity: what a dimension of a tensor means, followed through views.

A dimension of a tensor is an ordered group of axes, `(batch,)` or `(head, head_dim)`. Views only
regroup and reorder axes; an axis that a reshape cuts in two is split for everyone who holds it.
That makes the layout of a tensor a fact that can be carried forwards and backwards through any
chain of views, whatever operations they are written with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import sympy
from torch.utils._sympy.functions import FloorDiv

Size: TypeAlias = sympy.Expr


class Axis:
    """One axis: identity matters, equality of sizes does not.

    Attributes:
        size: Number of elements, an integer or a symbolic expression.
        parts: The axes this one turned out to consist of, major first; None while it is whole.
    """

    # Axes are compared as objects: a batch of 8 and 8 heads are two axes. Splitting one in place is
    # what makes everybody who holds it learn of its parts; `leaves` is how they look.
    __slots__ = ("parts", "size")

    def __init__(self, size: Size) -> None:
        self.size = size
        self.parts: tuple[Axis, ...] | None = None

    def leaves(self) -> tuple[Axis, ...]:
        if self.parts is None:
            return (self,)
        return tuple(leaf for part in self.parts for leaf in part.leaves())

    def split(self, major: Size, minor: Size) -> tuple[Axis, Axis]:
        self.parts = parts = (Axis(major), Axis(minor))
        return parts

    def __repr__(self) -> str:
        return f"Axis({self.size})"


Dim = tuple[Axis, ...]
Layout = tuple[Dim, ...]


def size_of(value: object) -> Size:
    """Size of a dimension as found in a fake tensor's shape: int or SymInt."""
    node = getattr(value, "node", None)
    size: Size = sympy.sympify(node.expr if node is not None else value)
    return size.replace(FloorDiv, _exact_quotient)


def _exact_quotient(a: Size, b: Size) -> Size:
    """Torch leaves `s*s // s` and `(2*s - 1) // 2` standing."""
    # floor((2*s - 1) / 2) = s + floor(-1 / 2): the terms that divide come out of the floor.
    quotient = _divide(a, b)
    if quotient is None and b.is_Integer:
        rest, terms = sympy.expand(a).as_coeff_Add()
        whole = _divide(terms, b) if rest.is_Integer else None
        quotient = None if whole is None else whole + rest // b
    return FloorDiv(a, b) if quotient is None else quotient


def fresh_dim(size: Size) -> Dim:
    """A dimension of one new axis, or of none where its size is 1."""
    return () if size == 1 else (Axis(size),)


def fresh_layout(shape: Iterable[object]) -> Layout:
    return tuple(fresh_dim(size_of(extent)) for extent in shape)


def resolve(layout: Layout) -> Layout:
    """The layout in terms of axes that are whole."""
    return tuple(leaves(dim) for dim in layout)


def leaves(axes: Iterable[Axis]) -> Dim:
    return tuple(leaf for axis in axes for leaf in axis.leaves())


def flat(layout: Layout) -> Dim:
    """All whole axes of a layout in memory order."""
    return leaves(axis for dim in layout for axis in dim)


def same(a: Layout, b: Layout) -> bool:
    return resolve(a) == resolve(b)


def product(axes: Iterable[Axis]) -> Size:
    result: Size = sympy.Integer(1)
    for axis in axes:
        result = result * axis.size
    return result


def regroup(axes: Sequence[Axis], shape: Sequence[Size]) -> Layout | None:
    """Distribute axes in memory order over a shape; None where the sizes do not tell how."""
    # A reshape keeps elements in memory order: [batch, head * head_dim] over (B, S, ...) takes axes
    # from the front until their sizes multiply to each extent.
    pending = list(reversed(leaves(axes)))
    layout: list[Dim] = []
    for extent in shape:
        dim = _take(pending, extent)
        if dim is None:
            return None
        layout.append(dim)
    return None if pending else tuple(layout)


def _take(pending: list[Axis], extent: Size) -> Dim | None:
    """Pop axes whose sizes multiply to `extent`, splitting the last one where it is too large."""
    taken: list[Axis] = []
    missing = extent
    while missing != 1:
        if not pending:
            return None
        axis = pending.pop()
        rest = _divide(missing, axis.size)
        if rest is not None:
            taken.append(axis)
            missing = rest
            continue
        # Too large: [H * D] as [H, D] cuts the axis into a major and a minor part.
        beyond = _divide(axis.size, missing)
        if beyond is None:
            return None
        major, minor = axis.split(missing, beyond)
        taken.append(major)
        pending.append(minor)
        missing = sympy.Integer(1)
    return tuple(taken)


def _divide(a: Size, b: Size) -> Size | None:
    """The quotient where it is a whole number for every value of the symbols, else None."""
    # s * 64 / 64 is s, and s / 64 has no whole value: a symbol may have any value.
    quotient = sympy.cancel(a / b)
    _, denominator = sympy.fraction(sympy.together(quotient))  # of s/2 - 1/2, too
    return quotient if denominator == 1 else None
