"""Routers as they may come: sizes, options and logits, from which a case is made."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays

Logits = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _with_infinities(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Half of the heads must not be chosen, though never all."""
    logits = np.where(rng.random(shape) < 0.5, -np.inf, rng.standard_normal(shape))
    logits[..., 0] = 0.0
    return logits


LOGITS: dict[str, Logits] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "wide": lambda rng, shape: 30.0 * rng.standard_normal(shape),
    "two_values": lambda rng, shape: rng.integers(0, 2, shape).astype(np.float64),
    "equal": lambda rng, shape: np.full(shape, 0.25),
    "minus_infinity": _with_infinities,
    "lowest": lambda rng, shape: np.where(rng.random(shape) < 0.5, -60000.0, 1.0),
}


@dataclass(frozen=True)
class RouterSetup:
    """Sizes and options of a run; its text is the name of the case, and the seed of its numbers.

    Attributes:
        num_routed: 0: no routed logits, and `top_k` is 0.
        logits: A name in LOGITS.
    """

    batch: int = 1
    seq_len: int = 20
    num_routed: int = 7
    top_k: int = 3
    num_shared: int = 2
    shared_logits: bool = True
    staged: bool = True
    gate_mode: str = "weighted"
    dtype: str = "float32"
    logits: str = "normal"

    def case(self) -> Case:
        attributes = {
            "top_k": self.top_k,
            "num_shared_heads": self.num_shared,
            "gate_mode": self.gate_mode,
        }
        return Case(repr(self), "MoHRouter", "drawn", attributes, self._inputs, dtype=self.dtype)

    def _inputs(self, rng: np.random.Generator) -> Arrays:
        sizes = (
            self.num_routed,
            self.num_shared if self.shared_logits else 0,
            2 if self.staged else 0,
        )
        draws = ("normal" if size == 2 else self.logits for size in sizes)
        return tuple(
            LOGITS[draw](rng, (self.batch, self.seq_len, size)) if size else None
            for draw, size in zip(draws, sizes, strict=True)
        )
