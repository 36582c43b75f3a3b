"""Lay out what is counted of a request as one row of numbers.

Rows add up: those of requests to a window, those of windows to a day. Each layer has

    tokens      that went through its router, padding left out
    nonfinite   gates that are NaN or infinite
    on          for each head, tokens whose gate is not 0
    mass        for each head, the sum of the gates' absolute values
    margins     for each bin, tokens whose choice of heads is that clear
    margin_sum  of all margins
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import Field

from moh_deploy.config.strict_json import Strict

MARGIN_EDGES = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)
"""Upper edges of the bins of margins: a margin is at most the edge of its bin."""


@dataclass(frozen=True)
class CountedLayer(Strict):
    """A layer whose routing is counted.

    Attributes:
        path: Of the layer, as in the manifest.
        num_heads: All of its heads.
        num_shared_heads: The first so many are meant to be on for every token; None where the
            router's form does not tell.
        has_margins: The scores that its router ranks can be read.
    """

    path: str
    num_heads: Annotated[int, Field(ge=1, le=2**16)]
    num_shared_heads: Annotated[int, Field(ge=0, le=2**16)] | None
    has_margins: bool


@dataclass(frozen=True)
class LayerColumns:
    """The columns of one layer in a row of counts; see above for each but `all` of them."""

    layer: CountedLayer
    tokens: int
    nonfinite: int
    margin_sum: int
    on: slice
    mass: slice
    margins: slice
    all: slice

    @classmethod
    def of(cls, layer: CountedLayer, first: int = 0) -> LayerColumns:
        """Lay out a layer whose first column is this."""
        on = first + 3
        mass = on + layer.num_heads
        margins = mass + layer.num_heads
        end = margins + len(MARGIN_EDGES)
        parts = slice(on, mass), slice(mass, margins), slice(margins, end)
        return cls(layer, first, first + 1, first + 2, *parts, all=slice(first, end))


@dataclass(frozen=True)
class CountLayout:
    """The columns of all layers, in the order in which these run."""

    layers: tuple[CountedLayer, ...]

    @cached_property
    def columns(self) -> tuple[LayerColumns, ...]:
        """The columns of each layer."""
        found: list[LayerColumns] = []
        for layer in self.layers:
            found.append(LayerColumns.of(layer, found[-1].all.stop if found else 0))
        return tuple(found)

    @property
    def width(self) -> int:
        """The number of columns of a row."""
        return self.columns[-1].all.stop if self.columns else 0
