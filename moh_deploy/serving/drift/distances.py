"""How far the routing of one window is from that of the reference, in a few numbers a layer.

    load     of the tokens' choices, which share goes to another head (total variation)
    active   heads that are on for a token, on average: the difference
    mass     of the gates' values, which share lies on another head (total variation)
    shared   share of the gates' values that shared heads have: the difference
    margin   share of tokens whose choice is clearer or less clear than it was (total variation of
             the histograms of margins)
    head     for each head, the share of tokens that it is on for: the difference

All are 0 where nothing moved. `load` and `mass` find what moves many heads a little, `head` what
moves one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moh_deploy.serving.telemetry.layout import CountedLayer, CountLayout, LayerColumns
from moh_deploy.serving.telemetry.routing import Counts

Statistic = Literal["load", "active", "mass", "shared", "margin", "head"]

OF_LAYERS: frozenset[Statistic] = frozenset({"active", "shared", "margin"})
"""Those that need no counts of single heads."""


@dataclass(frozen=True)
class Quantity:
    """Name a column of distances: its layer, statistic and head.

    Attributes:
        layer: Number of the layer.
        statistic: Which distance.
        head: Of `head`, which one; None for any other.
    """

    layer: int
    statistic: Statistic
    head: int | None = None


def quantities(layout: CountLayout) -> tuple[Quantity, ...]:
    """Return what the columns of `distances` are."""
    return tuple(
        one for number, layer in enumerate(layout.layers) for one in _of_layer(number, layer)
    )


def distances(layout: CountLayout, totals: Counts, reference: Counts) -> NDArray[np.float64]:
    """Return how far windows are from the reference, [windows, quantities].

    Args:
        totals: Summed rows of each window, [windows, columns].
        reference: Summed rows of the reference, [columns].
    """
    if not layout.layers:
        return np.zeros((len(totals), 0))
    return np.concatenate([_distances(one, totals, reference) for one in layout.columns], axis=1)


def loads(columns: LayerColumns, totals: Counts) -> NDArray[np.float64]:
    """Return the share of tokens that each head of a layer is on for, [..., heads]."""
    return _over(totals[..., columns.on], totals[..., columns.tokens, None])


def _of_layer(number: int, layer: CountedLayer) -> list[Quantity]:
    of_all: list[Statistic] = ["load", "active", "mass"]
    if 0 < (layer.num_shared_heads or 0) < layer.num_heads:
        of_all.append("shared")
    if layer.has_margins:
        of_all.append("margin")
    heads = [Quantity(number, "head", head) for head in range(layer.num_heads)]
    return [*(Quantity(number, one) for one in of_all), *heads]


def _distances(columns: LayerColumns, totals: Counts, reference: Counts) -> NDArray[np.float64]:
    """Return the distances of one layer, in the order of `_of_layer`."""
    layer, first = columns.layer, columns.layer.num_shared_heads or 0
    on, on_then = loads(columns, totals), loads(columns, reference)
    mass = _shares(totals[:, columns.mass]), _shares(reference[columns.mass])
    # Shared heads are on for every token: among them nothing is chosen.
    chosen = (on[:, first:], on_then[first:]) if first < layer.num_heads else (on, on_then)
    found = [
        _variation(_shares(chosen[0]), _shares(chosen[1])),
        np.abs(on.sum(axis=1) - on_then.sum()),
        _variation(*mass),
    ]
    if 0 < first < layer.num_heads:
        found.append(np.abs(mass[0][:, :first].sum(axis=1) - mass[1][:first].sum()))
    if layer.has_margins:
        margins = _shares(totals[:, columns.margins]), _shares(reference[columns.margins])
        found.append(_variation(*margins))
    return np.concatenate([np.stack(found, axis=1), np.abs(on - on_then)], axis=1)


def _variation(shares: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the total variation of two distributions: half the sum of the differences."""
    found: NDArray[np.float64] = np.abs(shares - others).sum(axis=-1) / 2
    return found


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return _over(counts, counts.sum(axis=-1, keepdims=True))


def _over(counts: NDArray[np.float64], all_: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts / np.where(all_ > 0, all_, 1)
