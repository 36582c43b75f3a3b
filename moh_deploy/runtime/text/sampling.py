"""Choose the next token of each row by its logits: the largest, or by chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class Sampling:
    """Settings of choosing the next token: the likeliest, or drawn.

    Attributes:
        temperature: Logits are divided by it; 0 takes the largest.
        top_p: Only the likeliest tokens that together have this probability are drawn from.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not np.isfinite(self.temperature):
            raise ConfigError(f"temperature is {self.temperature:g}, expected 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p:g}, expected more than 0, and at most 1.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, expected 0 or more.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def choose_tokens(logits: Array, sampling: Sampling, draws: np.random.Generator) -> Array:
    """Return a token for each row of logits [rows, vocab]."""
    if sampling.is_greedy:
        return np.asarray(np.argmax(logits, axis=-1))
    wide = np.asarray(logits, np.float64)
    with np.errstate(over="ignore"):  # of a very low temperature: all but the largest are -inf
        scaled = (wide - wide.max(axis=-1, keepdims=True)) / sampling.temperature
    chances = np.exp(scaled)
    chances /= chances.sum(axis=-1, keepdims=True)
    order = np.argsort(-chances, axis=-1, kind="stable")
    ranked = np.take_along_axis(chances, order, axis=-1)
    # The first token stays, however likely it is alone; one that crosses the line stays, too.
    before = ranked.cumsum(axis=-1) - ranked
    ranked[before >= sampling.top_p] = 0
    reached = ranked.cumsum(axis=-1)
    drawn = draws.random((len(ranked), 1)) * reached[:, -1:]
    places = (reached <= drawn).sum(axis=-1)
    # Rounding may draw the sum itself: then the last token that has a chance.
    last = (ranked > 0).sum(axis=-1) - 1
    chosen: Array = np.take_along_axis(order, np.minimum(places, last)[:, None], axis=-1)[:, 0]
    return chosen
