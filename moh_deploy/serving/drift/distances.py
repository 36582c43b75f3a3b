"""Measure the distance of a window's routing from the reference, in a few numbers a layer.

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

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moh_deploy.serving.telemetry.routing import CountedLayer, CountLayout, Counts, LayerColumns

# Find how far unchanged traffic strays from the reference by chance, by drawing it again.
#
# What differs by chance is the window, of a few hundred requests, and the reference itself, of a
# few thousand at most. So both are drawn, with replacement, from the requests that were recorded:
# whole requests, since the tokens of one are alike. Source: Efron, Bootstrap Methods (1979).
#
# A window is judged by many distances: some a layer, and one a head. Each is put on one scale, its
# mean and deviation under chance, and the limit is on the largest of all (the max statistic of
# Westfall and Young, Resampling-Based Multiple Testing, 1993): so the rate of false alarms is that
# of a window, whatever the number of layers, and layers that move together are not counted twice.
#
# The recorded requests are one draw of the traffic, and what is served on another day is a second
# one. So references are drawn of half the size, which doubles their variance: a limit allows for
# days that differ as two recordings of this size do. And as a limit may be lucky with its draw, of
# those that hold for each drawn reference one is taken that nearly all of them keep (`KEPT_IN`).

# In this share of references the rate of false alarms is at most the stated one.
KEPT_IN = 0.95

# How many references are drawn.
REFERENCES = 40

# How many drawn windows lie behind the limit of each reference: so many are drawn in all.
EXCEEDED = 10

# How many numbers are worked on at once.
_MOST_NUMBERS = 1 << 22


def limits(
    layout: CountLayout, rows: Counts, window: int, *, rate: float, seed: int
) -> NDArray[np.float64]:
    """Return the largest distances that count as chance, in the order of `quantities`.

    Args:
        rows: Counts of the recorded requests, [rows, columns].
        window: Rows of a window.
        rate: Of false alarms among windows.
    """
    rng = np.random.default_rng(seed)
    count = len(rows)
    references = np.concatenate(list(_drawn(rng, rows, max(1, count // 2), REFERENCES)))
    windows = np.concatenate(list(_drawn(rng, rows, window, round(EXCEEDED / rate))))
    # Each reference with its own part of the windows: the scale of each distance.
    parts = [
        distances(layout, windows[k::REFERENCES], reference)
        for k, reference in enumerate(references)
    ]
    sample = np.concatenate(parts)
    mean = sample.mean(axis=0)
    # What did not happen in so many requests happens in up to 3 of as many (the rule of three): a
    # head that no request used may be used by one of a window.
    deviation = np.sqrt(sample.var(axis=0) + 3 / (count * window))
    step = max(1, _MOST_NUMBERS // max(1, windows.shape[1]))
    quantiles = []
    for reference in references:
        largest = [
            ((distances(layout, windows[i : i + step], reference) - mean) / deviation).max(axis=1)
            for i in range(0, len(windows), step)
        ]
        quantiles.append(np.quantile(np.concatenate(largest), 1 - rate, method="higher"))
    # The next one above, not a mean of two. It is 3 to 5 deviations; of recorded requests that are
    # all alike none strays, and what is rounded would: 1 is a rest of what did not happen.
    far = max(1.0, float(np.quantile(quantiles, KEPT_IN, method="higher")))
    found: NDArray[np.float64] = mean + far * deviation
    return found


def _drawn(rng: np.random.Generator, rows: Counts, size: int, times: int) -> Iterator[Counts]:
    """Draw so many rows with replacement, many times, and yield their sums."""
    shares = np.full(len(rows), 1 / len(rows))
    step = max(1, _MOST_NUMBERS // len(rows))
    for start in range(0, times, step):
        yield rng.multinomial(size, shares, size=min(step, times - start)) @ rows


Statistic = Literal["load", "active", "mass", "shared", "margin", "head"]

# Those that need no counts of single heads.
OF_LAYERS: frozenset[Statistic] = frozenset({"active", "shared", "margin"})


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
