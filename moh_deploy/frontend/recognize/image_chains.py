"""Find where tokens become an image, are computed on, and become tokens again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch.fx import Graph, Node

from moh_deploy.frontend.fx.axes import Dim, Layout, fresh_dim, product, same
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import is_tensor, op, shape, tensor_inputs
from moh_deploy.frontend.fx.slices import Piece, trail_of
from moh_deploy.frontend.fx.views import casts, forward, is_view
from moh_deploy.frontend.recognize.image_ops import (
    Depthwise,
    Elementwise,
    Image,
    ImageOp,
    input_image,
    read_elementwise,
    read_image_op,
)


@dataclass(frozen=True)
class ImageChain:
    """Operators on an image, from tokens to tokens.

    Attributes:
        entry: The tokens, in their order: what the first step reads.
        image: What the model makes of them.
        features: The axes of a token; twice as many numbers as the image has if the step is gated.
        steps: The operators.
        inner: The chain's nodes before `end`. Nothing else reads more of them than sizes.
        end: The node that is in token order again.
        layout: Of `end`, in axes of the last step's image.
    """

    entry: Operand
    image: Image
    features: Dim
    steps: tuple[ImageOp, ...]
    inner: tuple[Node, ...]
    end: Node
    layout: Layout


def find_image_chains(graph: Graph) -> list[ImageChain]:
    """Return the chains of a graph, in execution order; no operator is in two of them."""
    chains: list[ImageChain] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        image = None if node in taken else input_image(node)
        chain = None if image is None else _Walk(node, image).run()
        if chain is not None:
            chains.append(chain)
            taken.update((*chain.inner, chain.end))
    return chains


class _Walk:
    """Follows an image from its first operator on, for as long as one operator reads it."""

    def __init__(self, first: Node, image: Image) -> None:
        self._first = first
        self._trail = trail_of(Operand(cast(Node, first.args[0]), image.layout))
        self._image = image
        self._steps: list[ImageOp] = []
        self._nodes: list[Node] = []
        self._layout = image.layout
        self._found: ImageChain | None = None

    def run(self) -> ImageChain | None:
        """Return the chain up to the last node in token order; None if there is none."""
        # conv2d, gelu, flatten, transpose, ...: each node reads the one before. The chain may end
        # at every node in token order, [B, H*W, C]; the last one makes the longest chain.
        node: Node | None = self._first
        while node is not None and self._advance(node):
            self._nodes.append(node)
            if self._steps[-1].image.is_in_token_order(self._layout):
                self._found = self._chain() or self._found
            node = _only_reader(node)
        return self._found

    def _advance(self, node: Node) -> bool:
        """Take one more node into the chain, if it belongs there."""
        previous = self._nodes[-1] if self._nodes else node.args[0]
        image = self._steps[-1].image if self._steps else self._image
        if op(node) in ("mul", "multiply"):
            return self._gate(node, cast(Node, previous))
        if node.args[0] is not previous:
            return False
        if is_view(node):
            layout = None if casts(node) else forward(node, self._layout)
            self._layout = layout or self._layout
            return layout is not None
        # A function of each number may be applied in any layout, a convolution to [B, C, H, W]
        # only.
        step: ImageOp | None = read_elementwise(node, image)
        if step is None and same(self._layout, image.layout):
            step = read_image_op(node, image)
            self._layout = self._layout if step is None else step.image.layout
        return step is not None and self._append(step)

    def _append(self, step: ImageOp) -> bool:
        last = self._steps[-1] if self._steps else None
        is_bare = isinstance(last, Depthwise) and not last.gelu and not last.gated
        if isinstance(step, Elementwise) and step.is_exact_gelu and is_bare:
            self._steps[-1] = replace(cast(Depthwise, last), gelu=True)
        else:
            self._steps.append(step)
        return True

    def _gate(self, node: Node, previous: Node) -> bool:
        """A product of the first half's convolution with the second half of the same tokens."""
        # ConvGLU of TransNeXt: gelu(conv(x1)) * x2, where [x1, x2] are the halves of one
        # projection.
        factors = [factor for factor in tensor_inputs(node) if factor is not previous]
        if len(self._steps) != 1 or len(factors) != 1 or shape(factors[0]) != shape(previous):
            return False
        (step,) = self._steps
        first, second = (
            self._half(trail, half)
            for half, trail in enumerate((self._trail, trail_of(Operand(factors[0], self._layout))))
        )
        if first is None or second is None or first.node is not second.node:
            return False
        if not isinstance(step, Depthwise) or step.gated:
            return False
        self._steps = [replace(step, gated=True)]
        return True

    def _half(self, trail: list[Piece], half: int) -> Piece | None:
        """The place where the trail is one half of the features of tokens."""
        # x1, x2 = tokens.chunk(2, -1): followed back, each is tokens with one cut of their
        # features.
        for piece in trail:
            last = len(piece.layout) - 1
            if len(piece.cuts) != 1 or not self._image.is_in_token_order(piece.layout):
                continue
            dim, start, stop = piece.cuts[0]
            length = stop - start
            halved = shape(piece.node)[last] == 2 * length == 2 * product(self._image.channels)
            if halved and (dim, start) == (last, half * length):
                return piece
        return None

    def _chain(self) -> ImageChain | None:
        entry, features = self._entry()
        if entry is None:
            return None
        return ImageChain(
            entry=entry,
            image=self._image,
            features=features,
            steps=tuple(self._steps),
            inner=tuple(self._nodes[:-1]),
            end=self._nodes[-1],
            layout=self._layout,
        )

    def _entry(self) -> tuple[Operand | None, Dim]:
        """The nearest tokens that the image is made of, with their gates if they are needed, and
        the axes of one token."""
        if isinstance(self._steps[0], Depthwise) and self._steps[0].gated:
            half = cast(Piece, self._half(self._trail, 0))
            both = fresh_dim(shape(half.node)[-1])
            return Operand(half.node, (*half.layout[:-1], both)), both
        ordered = self._image.is_in_token_order
        whole = (p for p in self._trail if ordered(p.layout) and not p.cuts)
        found = next((Operand(p.node, p.layout) for p in whole), None)
        return found, self._image.channels


def _only_reader(node: Node) -> Node | None:
    """The one node that reads a node's values; None if there are several, or if it is an output."""
    readers = [user for user in node.users if op(user) != "sym_size"]
    return readers[0] if len(readers) == 1 and is_tensor(readers[0]) else None
