"""Products of two tensors, whatever they are written with, as labelled dimensions.

`matmul`, `bmm`, `mm`, two-operand `einsum`, broadcast `mul` and its `sum` all become one thing: a
label for each dimension of both operands and of the result. A label that the result lacks is summed
over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout, fresh_dim
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape

Labels = tuple[str | None, ...]


@dataclass(frozen=True)
class Contraction:
    """A product of two tensors."""

    operands: tuple[Node, Node]  # the two factors
    # For each operand one label a dimension; None where a dimension of size 1 is broadcast.
    labels: tuple[Labels, Labels]
    out: Labels  # labels of the result

    @property
    def summed(self) -> set[str]:
        """Labels that are summed over."""
        return {
            label for labels in self.labels for label in labels if label and label not in self.out
        }

    @property
    def batch(self) -> set[str]:
        """Labels of both operands that are not summed over: each entry has factors of its own."""
        first, second = ({label for label in labels if label} for labels in self.labels)
        return (first & second) - self.summed

    def layouts(self, known: Layout, side: int) -> tuple[Layout, Layout]:
        """Layouts of the other operand and of the result, given that of operand `side`.

        Labels that only the other operand has get new axes.
        """
        axes = self._axes(self.labels[side], known)
        return _apply(self.labels[1 - side], axes), _apply(self.out, axes)

    def operand_layouts(self, out: Layout) -> tuple[Layout, Layout]:
        """Layouts of both operands, given that of the result; summed labels get new axes."""
        axes = self._axes(self.out, out)
        first, second = self.labels
        return _apply(first, axes), _apply(second, axes)

    def _axes(self, labels: Labels, layout: Layout) -> dict[str, Dim]:
        """The axes of all labels, given those of some; the others get new ones."""
        axes = {label: dim for label, dim in zip(labels, layout, strict=True) if label}
        for own, operand in zip(self.labels, self.operands, strict=True):
            for label, extent in zip(own, shape(operand), strict=True):
                if label and label not in axes:
                    axes[label] = fresh_dim(extent)
        return axes


def _apply(labels: Labels, axes: Mapping[str, Dim]) -> Layout:
    return tuple(axes[label] if label else () for label in labels)


def contraction(node: Node) -> Contraction | None:
    """Read a node as a product of two tensors; None for other nodes."""
    name = op(node)
    if name == "einsum":
        return _einsum(node)
    if name == "sum":
        return _summed_product(node)
    operands = node.args[:2]
    if len(operands) < 2 or not all(is_tensor(operand) for operand in operands):
        return None
    a, b = cast(tuple[Node, Node], tuple(operands))
    if name in ("matmul", "bmm", "mm") and min(rank(a), rank(b)) >= 2:
        # [..., m, k] @ [..., k, n] -> [..., m, n]; leading dimensions are broadcast.
        batch = [f"b{position}" for position in range(rank(node) - 2)]
        first = (*_aligned(batch, a, 2, b), "m", "k")
        second = (*_aligned(batch, b, 2, a), "k", "n")
        return Contraction((a, b), (first, second), (*batch, "m", "n"))
    if name in ("mul", "multiply"):
        # Nothing is summed over: every dimension of either operand is one of the result.
        out = [f"b{position}" for position in range(rank(node))]
        return Contraction((a, b), (_aligned(out, a, 0, b), _aligned(out, b, 0, a)), tuple(out))
    return None


def _summed_product(node: Node) -> Contraction | None:
    """`sum(a * b)` over dimensions that both have."""
    # (q[..., None, :] * k[..., None, :, :]).sum(-1) is a matmul that is written out.
    product, dims = cast(Node, node.args[0]), argument(node, "dim")
    if op(product) not in ("mul", "multiply") or not isinstance(dims, (list, tuple)):
        return None
    found = contraction(product)
    if found is None or found.operands[0] is found.operands[1]:
        return None
    positions = {cast(int, dim) % rank(product) for dim in dims}
    summed = {found.out[position] for position in positions}
    if not all(summed <= set(labels) for labels in found.labels):
        return None
    keeps = bool(argument(node, "keepdim", False))
    kept = [None if label in summed else label for label in found.out]
    out = tuple(label for label in kept if keeps or label is not None)
    return Contraction(found.operands, found.labels, out)


def _aligned(batch: Sequence[str], node: Node, trailing: int, other: Node) -> Labels:
    """Labels of the leading dimensions, right-aligned; None where a size of 1 is broadcast."""
    extents = shape(node)[: rank(node) - trailing]
    partner = shape(other)[: rank(other) - trailing]
    # A size of 1 beside a size of 1 is a dimension of both: only beside another size it is
    # repeated.
    labels: list[str | None] = list(batch[len(batch) - len(extents) :])
    for back in range(1, len(extents) + 1):
        if extents[-back] == 1 and back <= len(partner) and partner[-back] != 1:
            labels[-back] = None
    return tuple(labels)


def _einsum(node: Node) -> Contraction | None:
    equation, operands = node.args[0], node.args[1]
    if (
        not isinstance(equation, str)
        or not isinstance(operands, (list, tuple))
        or len(operands) != 2
    ):
        return None
    a, b = cast(tuple[Node, Node], tuple(operands))
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    expanded = [_expand(term, rank(operand)) for term, operand in zip(terms, (a, b), strict=True)]
    if any(term is None or len(set(term)) != len(term) for term in expanded):
        return None
    # A letter twice in one term takes a diagonal: refused above.
    first, second = cast(list[tuple[str, ...]], expanded)
    if arrow:
        out = _expand(result, rank(node))
    else:
        # Batch dimensions of the ellipsis, then letters of one term only, sorted.
        letters = (*first, *second)
        dots = sorted({letter for letter in letters if letter[0] == "."}, reverse=True)
        out = (*dots, *sorted(c for c in letters if letters.count(c) == 1 and c[0] != "."))
    if out is None:
        return None
    labels = (_squeeze(first, a, b, second), _squeeze(second, b, a, first))
    return Contraction((a, b), labels, out)


def _expand(term: str, dims: int) -> tuple[str, ...] | None:
    """Letters of one einsum term; an ellipsis becomes `.1 .0`, counted from the right."""
    head, dots, tail = term.partition("...")
    covered = dims - len(head) - len(tail)
    if covered < 0 or (covered and not dots):
        return None
    return (*head, *(f".{covered - 1 - index}" for index in range(covered)), *tail)


def _squeeze(term: tuple[str, ...], node: Node, other: Node, other_term: tuple[str, ...]) -> Labels:
    """Mark dimensions of size 1 that einsum broadcasts."""
    sizes = dict(zip(other_term, shape(other), strict=True))
    return tuple(
        None if extent == 1 and sizes.get(letter, extent) != 1 else letter
        for letter, extent in zip(term, shape(node), strict=True)
    )
