"""The logits on which implementations of routers go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Logits = NDArray[np.float64]


@dataclass(frozen=True)
class RoutingState:
    """Logits that routers are given.

    Attributes:
        name: What reports call it.
        logits: Makes [B, S, N] for N heads, or for the two stages, from a generator.
    """

    name: str
    logits: Callable[[np.random.Generator, tuple[int, ...]], _Logits]

    def build(self, shape: tuple[int, ...]) -> _Logits:
        """Return the same logits at each call, rounded to no dtype."""
        return self.logits(np.random.default_rng(0), shape)


def clear(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    """Every head a step from the next, in an order of each token's own."""
    return np.asarray(rng.permuted(_ramp(shape), axis=-1), np.float64)


def _ramp(shape: tuple[int, ...]) -> _Logits:
    """Rising scores; no probability underflows."""
    # Over all heads at most 60: exp(-60) is still a number in float32, 8.8e-27.
    step = min(0.5, 60.0 / max(shape[-1], 1))
    return np.asarray(np.broadcast_to(step * np.arange(shape[-1]), shape), np.float64)


def _ties(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    """Return logits of two values only: the last chosen head is tied in almost every token."""
    return rng.integers(0, 2, shape).astype(np.float64)


def _all_negative(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    # exp(-300) is 0 in float32: without taking off the maximum the softmax is 0 / 0.
    return clear(rng, shape) - 300.0


def _saturated(rng: np.random.Generator, shape: tuple[int, ...]) -> _Logits:
    """Return 1e4 for one head, and -1e4 for all others."""
    hot = rng.integers(0, max(shape[-1], 1), shape[:-1])
    logits: _Logits = np.where(np.arange(shape[-1]) == hot[..., None], 1e4, -1e4)
    return logits


FINITE_STATES = (
    # Equal scores go to the lower head index.
    RoutingState("ties", _ties),
    # All scores equal: the first heads are chosen.
    RoutingState("flat", lambda _, shape: np.full(shape, 0.5)),
    # Zero is no neutral element; exp underflows without the maximum.
    RoutingState("all negative", _all_negative),
    # exp of 1e4 overflows without the maximum; all other heads tie at 0.
    RoutingState("saturated", _saturated),
    # Every token chooses the last heads, and nobody the first ones.
    RoutingState("same heads", lambda _, shape: _ramp(shape)),
)
"""Put in front of all routers at once: numbers stay numbers."""

NAN = "NaN"
"""The state in which some tokens have a NaN among their logits: in front of one router at a time,
since every later layer would see it."""


def with_nan(logits: _Logits) -> _Logits:
    """Return logits [B, S, N] in which the first of every two tokens has one NaN."""
    changed: _Logits = logits.copy()
    # A view of all tokens, [B * S, N].
    tokens = changed.reshape(-1, changed.shape[-1])
    rows = np.arange(0, len(tokens), 2)
    # In another place from token to token: not every head is looked at first.
    tokens[rows, rows // 2 % max(tokens.shape[-1], 1)] = np.nan
    return changed
