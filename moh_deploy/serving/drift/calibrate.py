"""Find how far unchanged traffic strays from the reference by chance, by drawing it again.

What differs by chance is the window, of a few hundred requests, and the reference itself, of a few
thousand at most. So both are drawn, with replacement, from the requests that were recorded: whole
requests, since the tokens of one are alike. Source: Efron, Bootstrap Methods (1979).

A window is judged by many distances: some a layer, and one a head. Each is put on one scale, its
mean and deviation under chance, and the limit is on the largest of all (the max statistic of
Westfall and Young, Resampling-Based Multiple Testing, 1993): so the rate of false alarms is that of
a window, whatever the number of layers, and layers that move together are not counted twice.

The recorded requests are one draw of the traffic, and what is served on another day is a second
one. So references are drawn of half the size, which doubles their variance: a limit allows for days
that differ as two recordings of this size do. And as a limit may be lucky with its draw, of those
that hold for each drawn reference one is taken that nearly all of them keep (`KEPT_IN`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from moh_deploy.serving.drift.distances import distances
from moh_deploy.serving.telemetry.layout import CountLayout
from moh_deploy.serving.telemetry.routing import Counts

KEPT_IN = 0.95
"""In this share of references the rate of false alarms is at most the stated one."""

REFERENCES = 40
"""How many references are drawn."""

EXCEEDED = 10
"""How many drawn windows lie behind the limit of each reference: so many are drawn in all."""

_MOST_NUMBERS = 1 << 22
"""How many numbers are worked on at once."""


def limits(
    layout: CountLayout, rows: Counts, window: int, *, rate: float, seed: int
) -> NDArray[np.float64]:
    """Return the largest distances that count as chance, in the order of `quantities`.

    Args:
        rows: Counts of the recorded requests, [rows, columns].
        window: Rows of a window.
        rate: Of false alarms among windows.
        seed: Of the drawing.
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
