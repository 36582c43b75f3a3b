"""The parts of a windowed-and-pooled attention, however it was written."""

from dataclasses import dataclass

import torch
from sympy import divisors
from torch import Tensor

from moh_deploy.frontend.fx.axes import Dim
from moh_deploy.frontend.fx.slices import Piece

# Read the windows of an image off the pixels that their elements are.


@dataclass(frozen=True)
class Window:
    """Windows of odd extents around each pixel of an image; pixels and taps are row by row."""

    height: int
    width: int
    kernel_height: int
    kernel_width: int

    def neighbours(self) -> Tensor:
        """[N, L]: the pixel at each tap of each window; -1 outside the image."""
        # A pixel has the number y * width + x; a tap is outside if its row or its column is.
        rows = _near(self.height, self.kernel_height)  # [Y, kh]
        columns = _near(self.width, self.kernel_width)  # [X, kw]
        pixel = rows[:, None, :, None] * self.width + columns[None, :, None, :]
        outside = (rows < 0)[:, None, :, None] | (columns < 0)[None, :, None, :]
        return pixel.masked_fill(outside, -1).flatten(2).flatten(0, 1)

    def count_inside(self) -> int:
        """The number of neighbours, if all pixels have as many."""
        rows, columns = _near(self.height, self.kernel_height), _near(self.width, self.kernel_width)
        return int((rows >= 0).sum()) * int((columns >= 0).sum())


def _near(size: int, kernel: int) -> Tensor:
    # [size, kernel]: row y of a column of pixels sees the rows y - kernel // 2 and so on.
    place = torch.arange(size)[:, None] + torch.arange(kernel) - kernel // 2
    return place.masked_fill((place < 0) | (place >= size), -1)


def windows_like(neighbours: Tensor) -> list[tuple[Window, Tensor]]:
    """All windows that `neighbours` can be, each with the order of their taps.

    Args:
        neighbours: [N, L], the pixel at each tap; -1 where it is 0. Where nothing is 0, the border
            was repeated or reflected: then what stands outside the image does not matter.

    Returns:
        Windows, each with [L]: the window's own number of each given tap. The first has the most
        neighbours inside its image.
    """
    # The graph does not say how high the image is, only how many pixels there are: every pair of
    # factors is tried, for image and window, until the pixels at all taps agree.
    pixels, taps = neighbours.shape
    inside = int((neighbours >= 0).sum())
    repeats = inside == neighbours.numel()
    found = []
    for height in divisors(pixels):
        for kernel_height in divisors(taps):
            window = Window(height, pixels // height, kernel_height, taps // kernel_height)
            odd = kernel_height % 2 and window.kernel_width % 2
            if odd and (repeats or window.count_inside() == inside):
                order = _order_of(neighbours, window.neighbours(), repeats=repeats)
                if order is not None:
                    found.append((window, order))
    return sorted(found, key=lambda each: -each[0].count_inside())


def _order_of(given: Tensor, expected: Tensor, *, repeats: bool) -> Tensor | None:
    """Of taps that are all outside, any one does: those with most pixels inside choose first."""
    inside = (expected >= 0).sum(0)
    free = sorted(range(expected.shape[1]), key=lambda number: -int(inside[number]))
    order: list[int] = []
    for tap in given.unbind(1):  # [N]
        agreeing = (tap[:, None] == expected) | (repeats & (expected < 0))
        match = next((number for number in free if bool(agreeing[:, number].all())), None)
        if match is None:
            return None
        free.remove(match)
        order.append(match)
    return torch.tensor(order)


@dataclass(frozen=True)
class WindowSource:
    """A tensor of heads for each row, or the part of one."""

    piece: Piece
    rows: Dim  # the axes of its tokens, or of its pooled tokens
    head_dim: Dim


@dataclass(frozen=True)
class Aggregated:
    """The operands of MoHAggregatedAttention, in the words of `docs/ops.md`.

    Attributes:
        query, key, value: One row a pixel.
        pooled_key, pooled_value: One row a pooled token.
        window: Sizes of image and window.
        query_embedding: [H, D].
        query_scale: [H, N].
        window_bias: [H, L].
        pooled_bias: [H, N, P].
        window_tokens: [H, D, L].
        window_offset: [H, L].
        epsilon: Smallest norm; None where queries and keys are taken as they are.

    What does not depend on the input is float64; None where it changes nothing.
    """

    query: WindowSource
    key: WindowSource
    value: WindowSource
    pooled_key: WindowSource
    pooled_value: WindowSource
    window: Window
    query_embedding: Tensor | None
    query_scale: Tensor | None
    window_bias: Tensor | None
    pooled_bias: Tensor | None
    window_tokens: Tensor | None
    window_offset: Tensor | None
    epsilon: float | None

    @property
    def sources(self) -> tuple[WindowSource, ...]:
        return (self.query, self.key, self.value, self.pooled_key, self.pooled_value)
