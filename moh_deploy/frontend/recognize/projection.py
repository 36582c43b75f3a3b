"""Products of an activation with weights, whatever they are written with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from torch.fx import Node

from moh_deploy.frontend.fx.axes import Dim, Layout
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.contraction import Contraction, contraction
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape
from moh_deploy.frontend.fx.views import broadcast

Stored = Callable[[Node], bool]


@dataclass(frozen=True)
class Projection:
    """`x @ weight + bias`."""

    node: Node
    product: Contraction  # the product; x is operand 0 and the weight is operand 1
    bias: Node | None = None  # broadcast against the result; or None

    @property
    def x(self) -> Node:
        return self.product.operands[0]

    @property
    def weight(self) -> Node:
        return self.product.operands[1]

    def operands(self, out: Layout) -> tuple[Operand, Operand]:
        """x and weight, given the layout of the result; what is summed over gets new axes."""
        first, second = self.product.operand_layouts(out)
        return Operand(self.x, first), Operand(self.weight, second)

    def columns(self, out: Layout) -> Dim:
        """The axes of the result that come from the weight."""
        # x [B, S, k] @ W [k, n] -> [B, S, n]: those of the label n.
        labels = set(self.product.labels[1])
        named = zip(self.product.out, out, strict=True)
        return tuple(axis for label, dim in named if label in labels for axis in dim)

    def bias_of(self, out: Layout) -> Operand | None:
        """The bias, given the layout of the result."""
        if self.bias is None:
            return None
        layout = broadcast(self.bias, out)
        assert layout is not None, "a bias broadcasts to the sum that it is part of"
        return Operand(self.bias, layout)


def read_projection(node: Node, stored: Stored) -> Projection | None:
    """Read a node as a product with weights; None for other nodes.

    Args:
        stored: Tells whether a node's value is known before the model runs.
    """
    found = _read_projection(node, stored) if is_tensor(node) else None
    return found if found is not None and _is_plain(found) else None


def _read_projection(node: Node, stored: Stored) -> Projection | None:
    name = op(node)
    if name in ("linear", "addmm"):
        return _with_own_bias(node, stored)
    if name == "add" and argument(node, "alpha", 1) == 1:
        return _sum(node, stored)
    found = contraction(node)
    if found is None or not found.summed:
        return None
    # x @ W, W @ x and einsum of either: the weight is what is known before the model runs.
    sides = [side for side in (0, 1) if stored(found.operands[side])]
    if sides == [0]:
        (first, second), (a, b) = found.operands, found.labels
        found = Contraction((second, first), (b, a), found.out)
    return Projection(node, found) if len(sides) == 1 else None


def _with_own_bias(node: Node, stored: Stored) -> Projection | None:
    if op(node) == "linear":
        # torch: linear(x [..., K], W [N, K], b) = x @ W.T + b
        x, weight = cast(tuple[Node, Node], tuple(node.args[:2]))
        bias = argument(node, "bias")
        rows = tuple(f"b{position}" for position in range(rank(x) - 1))
        labels = ((*rows, "k"), ("n", "k")), (*rows, "n")
    else:
        # addmm(b, x [M, K], W [K, N]) = b + x @ W
        bias, x, weight = cast(tuple[Node, Node, Node], tuple(node.args[:3]))
        labels = (("m", "k"), ("k", "n")), ("m", "n")
        if argument(node, "beta", 1) != 1 or argument(node, "alpha", 1) != 1:
            return None
    bias = bias if isinstance(bias, Node) else None
    if rank(weight) != 2 or not stored(weight) or stored(x) or not (bias is None or stored(bias)):
        return None
    return Projection(node, Contraction((x, weight), *labels), bias)


def _sum(node: Node, stored: Stored) -> Projection | None:
    """A product without a bias, plus a bias."""
    # x @ W + b or b + x @ W, [..., N]: two operators, and the first has no other reader.
    for position in (0, 1):
        product, bias = node.args[position], node.args[1 - position]
        if not (isinstance(product, Node) and isinstance(bias, Node) and is_tensor(bias)):
            continue
        if not stored(bias) or len(product.users) != 1 or op(product) == "add":
            continue
        found = (
            _read_projection(product, stored)
            if is_tensor(product) and not stored(product)
            else None
        )
        if found is not None and found.bias is None and shape(product) == shape(node):
            return Projection(node, found.product, bias)
    return None


def _is_plain(found: Projection) -> bool:
    """True where all rows meet the same weight and bias, and nothing is summed on one side only."""
    # x [b, s, k] @ weight [k, n]: k is summed over, and the only label of both. A label of both
    # operands that the result has as well is a batch of weights: not a projection.
    (x, weight), out = found.product.labels, set(found.product.out)
    if {*x} & {*weight} - {None} != found.product.summed:
        return False
    if found.product.summed - {*x} or found.product.summed - {*weight}:
        return False
    if found.bias is None:
        return True
    columns = {label for label in weight if label in out}
    dims = found.product.out[len(found.product.out) - rank(found.bias) :]
    extents = shape(found.bias)
    return rank(found.bias) <= rank(found.node) and all(
        label in columns or extent == 1 for label, extent in zip(dims, extents, strict=True)
    )


ReadProjection = Callable[[Node], Projection | None]
