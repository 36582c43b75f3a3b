"""Find where tokens become an image, are computed on, and become tokens again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from torch.fx import Graph, Node

from moh_deploy.frontend.fx.axes import (
    Dim,
    Layout,
    flat,
    fresh_dim,
    fresh_layout,
    product,
    same,
    size_of,
)
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape, tensor_inputs
from moh_deploy.frontend.fx.slices import Piece, trail_of
from moh_deploy.frontend.fx.views import casts, forward, is_view

# Operators on images [B, C, H, W] that can as well be computed on tokens [B, H*W, C].

_SMOOTH = ("elu", "gelu", "mish", "sigmoid", "silu", "tanh")
_PIECEWISE = ("hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu", "relu6")
_ELEMENTWISE = frozenset((*_SMOOTH, *_PIECEWISE))
_CONVOLUTIONS = ("conv2d", "convolution")
_POOLINGS = ("adaptive_avg_pool2d", "avg_pool2d")


@dataclass(frozen=True)
class Image:
    """The axes of an image; its height and width are fixed."""

    batch: Dim
    channels: Dim
    rows: Dim
    columns: Dim

    @property
    def height(self) -> int:
        return int(product(self.rows))

    @property
    def width(self) -> int:
        return int(product(self.columns))

    @property
    def layout(self) -> Layout:
        """[B, C, H, W]."""
        return self.batch, self.channels, self.rows, self.columns

    @property
    def tokens(self) -> Layout:
        """Return the layout of tokens, [B, H*W, C]."""
        return self.batch, (*self.rows, *self.columns), self.channels

    def is_in_token_order(self, layout: Layout) -> bool:
        """True where a tensor of this layout is the tokens, up to a reshape."""
        return flat(layout) == flat(self.tokens)


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution of stride 1 that keeps the size."""

    image: Image  # of its input and of its output
    weight: Node  # [C, 1, kh, kw]
    bias: Node | None
    gelu: bool = False  # the exact gelu follows
    gated: bool = False  # then a product with the second half of the channels that the tokens have


@dataclass(frozen=True)
class Pointwise:
    """A convolution of one pixel: weight [O, C, 1, 1]."""

    image: Image
    weight: Node
    bias: Node | None


@dataclass(frozen=True)
class BlockMean:
    """The mean of each block of pixels."""

    image: Image
    block: tuple[int, int]


@dataclass(frozen=True)
class Elementwise:
    """A function of each number: the operator, with what it takes besides the image."""

    image: Image
    node: Node

    @property
    def is_exact_gelu(self) -> bool:
        return op(self.node) == "gelu" and argument(self.node, "approximate", "none") == "none"


ImageOp: TypeAlias = Depthwise | Pointwise | BlockMean | Elementwise


def _read_image_op(node: Node, image: Image, *, is_image: bool) -> ImageOp | None:
    """Read an operator on an image; None where it needs more than tokens.

    Args:
        is_image: It reads [B, C, H, W]; else the same numbers in another layout.
    """
    name = op(node)
    # A function of each number may be applied in any layout, a convolution to images only.
    if name in _ELEMENTWISE and len(tensor_inputs(node)) == 1:
        return Elementwise(image, node)
    if is_image and name in _CONVOLUTIONS:
        return _convolution(node, image)
    if not is_image or name not in _POOLINGS:
        return None
    # A pooling whose windows are the blocks of a grid, without padding or rest.
    if name == "avg_pool2d":
        kernel = _pair(argument(node, "kernel_size"))
        strided = _pair(argument(node, "stride") or kernel) == kernel
        plain = argument(node, "divisor_override") is None and _padding(node) == (0, 0)
        block = kernel if plain and strided else None
    else:
        block = _adaptive_block(node, image)
    if block is None or image.height % block[0] or image.width % block[1]:
        return None
    rows, columns = image.height // block[0], image.width // block[1]
    pooled = replace(image, rows=fresh_dim(size_of(rows)), columns=fresh_dim(size_of(columns)))
    return BlockMean(pooled, block)


def _convolution(node: Node, image: Image) -> Depthwise | Pointwise | None:
    # weight [O, C / groups, kh, kw]
    weight, bias = cast(Node, argument(node, "weight")), cast(Node | None, argument(node, "bias"))
    extents = [int(extent) for extent in shape(weight)]
    kernel = (extents[2], extents[3])
    if argument(node, "transposed", False) or _pair(argument(node, "stride", 1)) != (1, 1):
        return None
    if kernel == (1, 1) and argument(node, "groups", 1) == 1 and _padding(node) == (0, 0):
        return Pointwise(replace(image, channels=fresh_dim(size_of(extents[0]))), weight, bias)
    # Odd, undilated and padded by half: output pixel and input pixel are one token.
    same = (kernel[0] // 2, kernel[1] // 2)
    depthwise = argument(node, "groups", 1) == extents[0] == product(image.channels)
    odd = all(extent % 2 for extent in kernel)
    undilated = _pair(argument(node, "dilation", 1)) == (1, 1)
    if depthwise and odd and undilated and _padding(node) in (same, "same"):
        return Depthwise(image, weight, bias)
    return None


def _padding(node: Node) -> tuple[int, int] | str:
    """Padding of height and width, or `same`; the other word for none is read as none."""
    padding = argument(node, "padding", 0)
    if isinstance(padding, str):
        return (0, 0) if padding == "valid" else padding
    return _pair(padding)


def _adaptive_block(node: Node, image: Image) -> tuple[int, int] | None:
    # Adaptive windows overlap where the sizes do not divide: then they are no blocks.
    block = []
    wanted = cast(Sequence[object], argument(node, "output_size"))
    for size, given in zip((image.height, image.width), wanted, strict=True):
        count = size if given is None else given
        if not isinstance(count, int) or count <= 0 or size % count:
            return None
        block.append(size // count)
    return block[0], block[1]


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    entries = list(cast(Sequence[int], value))
    return entries[0], entries[-1]


@dataclass(frozen=True)
class ImageChain:
    """Operators on an image, from tokens to tokens."""

    entry: Operand  # the tokens, in their order: what the first step reads
    image: Image
    # The axes of a token; twice as many numbers as the image has if the step is gated.
    features: Dim
    steps: tuple[ImageOp, ...]
    # The chain's nodes before `end`. Nothing else reads more of them than sizes.
    inner: tuple[Node, ...]
    end: Node  # the node that is in token order again
    layout: Layout  # of `end`, in axes of the last step's image


def find_image_chains(graph: Graph) -> list[ImageChain]:
    """Return the chains of a graph, in execution order; no operator is in two of them."""
    chains: list[ImageChain] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        if node in taken or op(node) not in (*_CONVOLUTIONS, *_POOLINGS):
            continue
        # The op has to know the height and width: which tokens are neighbours hangs on them.
        source = cast(Node, node.args[0])
        if rank(source) != 4 or not all(extent.is_Integer for extent in shape(source)[1:]):
            continue
        chain = _Walk(node, Image(*fresh_layout(shape(source)))).run()
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
        """Return the chain up to the last node in token order, or None."""
        # conv2d, gelu, flatten, transpose, ...: each node reads the one before. The chain may end
        # at every node in token order, [B, H*W, C]; the last one makes the longest chain.
        node: Node | None = self._first
        while node is not None and self._advance(node):
            self._nodes.append(node)
            if self._steps[-1].image.is_in_token_order(self._layout):
                self._found = self._chain() or self._found
            # The one node that reads its values; a model's output lacks it.
            readers = [user for user in node.users if op(user) != "sym_size"]
            node = readers[0] if len(readers) == 1 and is_tensor(readers[0]) else None
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
        step = _read_image_op(node, image, is_image=same(self._layout, image.layout))
        if step is not None and not isinstance(step, Elementwise):
            self._layout = step.image.layout
        last = self._steps[-1] if self._steps else None
        is_gelu = isinstance(step, Elementwise) and step.is_exact_gelu
        if is_gelu and isinstance(last, Depthwise) and not last.gelu and not last.gated:
            self._steps[-1] = replace(last, gelu=True)
        elif step is not None:
            self._steps.append(step)
        return step is not None

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
        # The nearest tokens that the image is made of, with their gates if they are needed.
        features = self._image.channels
        if isinstance(self._steps[0], Depthwise) and self._steps[0].gated:
            half = cast(Piece, self._half(self._trail, 0))
            features = fresh_dim(shape(half.node)[-1])
            entry = Operand(half.node, (*half.layout[:-1], features))
        else:
            ordered = self._image.is_in_token_order
            whole = (p for p in self._trail if ordered(p.layout) and not p.cuts)
            nearest = next(whole, None)
            if nearest is None:
                return None
            entry = Operand(nearest.node, nearest.layout)
        return ImageChain(
            entry=entry,
            image=self._image,
            features=features,
            steps=tuple(self._steps),
            inner=tuple(self._nodes[:-1]),
            end=self._nodes[-1],
            layout=self._layout,
        )
