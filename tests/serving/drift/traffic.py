"""Requests to a made-up model of two layers, whose routing is drawn."""

from __future__ import annotations

import numpy as np

from moh_deploy.serving.telemetry.routing import CountedLayer, CountLayout, Counts
from moh_deploy.serving.telemetry.window import RecordedWindow, WindowAbout

SHARED, ROUTED, TOP_K, TOKENS = 2, 4, 2, 16
LAYERS = (
    CountedLayer("blocks.0", SHARED + ROUTED, SHARED, True),
    CountedLayer("blocks.1", ROUTED, None, False),
)
LAYOUT = CountLayout(LAYERS)

LIKED = (1.0, 0.5, 0.0, -0.5)
"""How much the routed heads are liked, all else equal."""


def requests(count: int, *, seed: int, liked: tuple[float, ...] = LIKED) -> Counts:
    """Draw requests, [count, columns]. The tokens of a request like much the same heads."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, LAYOUT.width))
    # [requests, layers, tokens, heads]
    taste = rng.normal(0, 1.5, (count, 2, 1, ROUTED)) + np.array(liked)
    scores = taste + rng.normal(0, 0.5, (count, 2, TOKENS, ROUTED))
    ranked = np.sort(scores, axis=-1)
    is_on = scores >= ranked[..., -TOP_K, None]
    for number, columns in enumerate(LAYOUT.columns):
        shared = columns.layer.num_shared_heads or 0
        on = np.concatenate([np.ones((count, TOKENS, shared)), is_on[:, number]], axis=-1)
        rows[:, columns.tokens] = TOKENS
        rows[:, columns.on] = on.sum(axis=1)
        rows[:, columns.mass] = (on * (1 + np.arange(on.shape[-1]))).sum(axis=1)
        if columns.layer.has_margins:
            margins = ranked[:, number, :, -TOP_K] - ranked[:, number, :, -TOP_K - 1]
            # Some three bins of the histogram.
            which = np.digitize(margins, [0.3, 1.0])
            for bin_ in range(3):
                rows[:, columns.margins.start + 8 + bin_] = (which == bin_).sum(axis=1)
    return rows


def window(rows: Counts, digest: str = "d1") -> RecordedWindow:
    """Return requests as they were recorded, one a second."""
    about = WindowAbout(digest, LAYERS)
    return RecordedWindow(about, rows, np.ones(len(rows), np.int64), np.arange(len(rows)) * 1.0)
