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

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moh_deploy.serving.telemetry.layout import CountedLayer, CountLayout, LayerColumns
from moh_deploy.serving.telemetry.routing import Counts

Statistic = Literal["load", "active", "mass", "shared", "margin", "head"]

OF_LAYERS: frozenset[Statistic] = frozenset({"active", "shared", "margin"})
"""Those that need no counts of single heads."""


def statistics_of(layer: CountedLayer) -> tuple[Statistic, ...]:
    """Return the distances that a layer has, but those of single heads."""
    has_both = 0 < (layer.num_shared_heads or 0) < layer.num_heads
    shared: tuple[Statistic, ...] = ("shared",) if has_both else ()
    margin: tuple[Statistic, ...] = ("margin",) if layer.has_margins else ()
    return ("load", "active", "mass", *shared, *margin)


def distances(layout: CountLayout, totals: Counts, reference: Counts) -> NDArray[np.float64]:
    """Return how far windows are from the reference, [windows, distances].

    Layer by layer: first the `statistics_of` the layer, then one for each head.

    Args:
        totals: Summed rows of each window, [windows, columns].
        reference: Summed rows of the reference, [columns].
    """
    found = [np.zeros((len(totals), 0))]
    for columns in layout.columns:
        of_layer, heads = _distances(columns, totals, reference)
        found += [np.stack([of_layer[name] for name in statistics_of(columns.layer)], 1), heads]
    return np.concatenate(found, axis=1)


def by_layer(
    layout: CountLayout, row: NDArray[np.float64]
) -> Iterator[tuple[dict[Statistic, float], tuple[float, ...]]]:
    """Cut a row of `distances`: yield those of each layer, by name, and those of its heads."""
    values = iter(row.tolist())
    for layer in layout.layers:
        of_layer = {name: next(values) for name in statistics_of(layer)}
        yield of_layer, tuple(next(values) for _ in range(layer.num_heads))


def loads(columns: LayerColumns, totals: Counts) -> NDArray[np.float64]:
    """Return the share of tokens that each head of a layer is on for, [..., heads]."""
    return _over(totals[..., columns.on], totals[..., columns.tokens, None])


def _distances(
    columns: LayerColumns, totals: Counts, reference: Counts
) -> tuple[dict[Statistic, NDArray[np.float64]], NDArray[np.float64]]:
    """Return all distances of a layer, those too that it has not, and those of its heads."""
    layer, first = columns.layer, columns.layer.num_shared_heads or 0
    on, on_then = loads(columns, totals), loads(columns, reference)
    mass, mass_then = _shares(totals[:, columns.mass]), _shares(reference[columns.mass])
    # Shared heads are on for every token: among them nothing is chosen.
    chosen = slice(first if first < layer.num_heads else 0, None)
    shared = mass[:, :first].sum(axis=1) - mass_then[:first].sum()
    margins, margins_then = _shares(totals[:, columns.margins]), _shares(reference[columns.margins])
    of_layer: dict[Statistic, NDArray[np.float64]] = {
        "load": _variation(_shares(on[:, chosen]), _shares(on_then[chosen])),
        "active": np.abs(on.sum(axis=1) - on_then.sum()),
        "mass": _variation(mass, mass_then),
        "shared": np.abs(shared),
        "margin": _variation(margins, margins_then),
    }
    return of_layer, np.abs(on - on_then)


def _variation(shares: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the total variation of two distributions: half the sum of the differences."""
    found: NDArray[np.float64] = np.abs(shares - others).sum(axis=-1) / 2
    return found


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return _over(counts, counts.sum(axis=-1, keepdims=True))


def _over(counts: NDArray[np.float64], all_: NDArray[np.float64]) -> NDArray[np.float64]:
    return counts / np.where(all_ > 0, all_, 1)
