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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import Field

from moh_deploy.config.strict_json import Strict
from moh_deploy.package import LayerInfo

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

    @property
    def kind(self) -> tuple[object, ...]:
        """All but the path: layers of one kind have the same columns."""
        return self.num_heads, self.num_shared_heads, self.has_margins

    @classmethod
    def of(cls, layer: LayerInfo, *, has_margins: bool) -> CountedLayer:
        """Return what a manifest's layer is counted as."""
        return cls(layer.path, layer.num_heads, layer.num_shared_heads, has_margins)


@dataclass(frozen=True)
class LayerColumns:
    """The columns of one layer in a row of counts.

    Attributes:
        layer: The layer.
        first: The first of its columns.
    """

    layer: CountedLayer
    first: int

    @property
    def tokens(self) -> int:
        return self.first

    @property
    def nonfinite(self) -> int:
        return self.first + 1

    @property
    def margin_sum(self) -> int:
        return self.first + 2

    @property
    def on(self) -> slice:
        return self._behind(3, self.layer.num_heads)

    @property
    def mass(self) -> slice:
        return self._behind(3 + self.layer.num_heads, self.layer.num_heads)

    @property
    def margins(self) -> slice:
        return self._behind(3 + 2 * self.layer.num_heads, len(MARGIN_EDGES))

    @property
    def end(self) -> int:
        return self.first + 3 + 2 * self.layer.num_heads + len(MARGIN_EDGES)

    @property
    def all(self) -> slice:
        return slice(self.first, self.end)

    def _behind(self, start: int, size: int) -> slice:
        return slice(self.first + start, self.first + start + size)


@dataclass(frozen=True)
class CountLayout:
    """The columns of all layers, in the order in which these run."""

    layers: tuple[CountedLayer, ...]

    @cached_property
    def columns(self) -> tuple[LayerColumns, ...]:
        """The columns of each layer."""
        found: list[LayerColumns] = []
        for layer in self.layers:
            found.append(LayerColumns(layer, found[-1].end if found else 0))
        return tuple(found)

    @classmethod
    def of_one(cls, layer: CountedLayer) -> LayerColumns:
        """Return the columns of a layer that stands alone."""
        return LayerColumns(layer, 0)

    @property
    def width(self) -> int:
        """The number of columns of a row."""
        return self.columns[-1].end if self.columns else 0

    def paths(self) -> Sequence[str]:
        """Return the layers' paths."""
        return [layer.path for layer in self.layers]
