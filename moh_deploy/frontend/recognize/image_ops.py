"""Operators on images [B, C, H, W] that can as well be computed on tokens [B, H*W, C]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from torch.fx import Node

from moh_deploy.frontend.fx.axes import (
    Dim,
    Layout,
    flat,
    fresh_dim,
    fresh_layout,
    product,
    size_of,
)
from moh_deploy.frontend.fx.graph import argument, op, rank, shape, tensor_inputs

_SMOOTH = ("elu", "gelu", "mish", "sigmoid", "silu", "tanh")
_PIECEWISE = ("hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu", "relu6")
_ELEMENTWISE = frozenset((*_SMOOTH, *_PIECEWISE))


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
        """[B, H*W, C]."""
        return self.batch, (*self.rows, *self.columns), self.channels

    def is_in_token_order(self, layout: Layout) -> bool:
        """True where a tensor of this layout is the tokens, up to a reshape."""
        return flat(layout) == flat(self.tokens)


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution of stride 1 that keeps the size.

    Attributes:
        image: Of its input and of its output.
        weight: [C, 1, kh, kw].
        gelu: The exact gelu follows.
        gated: Then a product with the second half of the channels that the tokens have.
    """

    image: Image
    weight: Node
    bias: Node | None
    gelu: bool = False
    gated: bool = False


@dataclass(frozen=True)
class Pointwise:
    """A convolution of one pixel: weight [O, C, 1, 1]."""

    image: Image
    weight: Node
    bias: Node | None


@dataclass(frozen=True)
class BlockMean:
    """The mean of each block of pixels.

    Attributes:
        image: Of the output.
        block: Height and width of a block.
    """

    image: Image
    block: tuple[int, int]


@dataclass(frozen=True)
class Elementwise:
    """A function of each number.

    Attributes:
        image: Of the input and of the output.
        node: The operator, with what it takes besides the image.
    """

    image: Image
    node: Node

    @property
    def is_exact_gelu(self) -> bool:
        return op(self.node) == "gelu" and argument(self.node, "approximate", "none") == "none"


ImageOp: TypeAlias = Depthwise | Pointwise | BlockMean | Elementwise


def input_image(node: Node) -> Image | None:
    """The image that a convolution or pooling reads; None for any other node."""
    if op(node) not in ("conv2d", "convolution", "adaptive_avg_pool2d", "avg_pool2d"):
        return None
    # The op has to know the height and width: which tokens are neighbours hangs on them.
    source = cast(Node, node.args[0])
    if rank(source) != 4 or not all(extent.is_Integer for extent in shape(source)[1:]):
        return None
    return Image(*fresh_layout(shape(source)))


def read_image_op(node: Node, image: Image) -> ImageOp | None:
    """Read an operator whose first input is an image; None where it needs more than tokens."""
    name = op(node)
    if name in ("conv2d", "convolution"):
        return _convolution(node, image)
    if name in ("adaptive_avg_pool2d", "avg_pool2d"):
        return _block_mean(node, image)
    return read_elementwise(node, image)


def read_elementwise(node: Node, image: Image) -> Elementwise | None:
    """Read a function of each number, in any layout of the image."""
    if op(node) not in _ELEMENTWISE or len(tensor_inputs(node)) != 1:
        return None
    return Elementwise(image, node)


def _convolution(node: Node, image: Image) -> Depthwise | Pointwise | None:
    # weight [O, C / groups, kh, kw]
    weight, bias = cast(Node, argument(node, "weight")), cast(Node | None, argument(node, "bias"))
    extents = [int(extent) for extent in shape(weight)]
    kernel = (extents[2], extents[3])
    if argument(node, "transposed", False) or _pair(argument(node, "stride", 1)) != (1, 1):
        return None
    if kernel == (1, 1) and argument(node, "groups", 1) == 1 and _padding(node) == (0, 0):
        return Pointwise(_with_channels(image, extents[0]), weight, bias)
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


def _with_channels(image: Image, channels: int) -> Image:
    return Image(image.batch, fresh_dim(size_of(channels)), image.rows, image.columns)


def _block_mean(node: Node, image: Image) -> BlockMean | None:
    """A pooling whose windows are the blocks of a grid, without padding or rest."""
    block = _adaptive_block(node, image) if "adaptive" in op(node) else _fixed_block(node)
    if block is None or image.height % block[0] or image.width % block[1]:
        return None
    grid = (size_of(image.height // block[0]), size_of(image.width // block[1]))
    pooled = Image(image.batch, image.channels, fresh_dim(grid[0]), fresh_dim(grid[1]))
    return BlockMean(pooled, block)


def _adaptive_block(node: Node, image: Image) -> tuple[int, int] | None:
    # Adaptive windows overlap where the sizes do not divide: then they are no blocks.
    wanted = argument(node, "output_size")
    sizes = (image.height, image.width)
    grid = [
        size if entry is None else entry
        for size, entry in zip(sizes, cast(Sequence[object], wanted), strict=True)
    ]
    if not all(isinstance(entry, int) and entry > 0 for entry in grid):
        return None
    rows, columns = cast(list[int], grid)
    if image.height % rows or image.width % columns:
        return None
    return image.height // rows, image.width // columns


def _fixed_block(node: Node) -> tuple[int, int] | None:
    kernel = _pair(argument(node, "kernel_size"))
    stride = _pair(argument(node, "stride") or kernel)
    plain = argument(node, "divisor_override") is None and _padding(node) == (0, 0)
    return kernel if plain and stride == kernel else None


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    entries = list(cast(Sequence[int], value))
    return entries[0], entries[-1]
