"""The cases of MoHRouter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays, AttributeValue
from tests.ops.cases.in_every_dtype import in_every_dtype

Logits = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


@dataclass(frozen=True)
class _Setup:
    """Sizes and options of a case."""

    num_routed: int = 7
    top_k: int = 3
    num_shared: int = 2
    shared_logits: bool = True
    staged: bool = True
    gate_mode: str = "weighted"
    batch: int = 2
    seq_len: int = 7
    logits: Logits = _normal

    def case(self, name: str, why: str) -> Case:
        attributes: dict[str, AttributeValue] = {
            "top_k": self.top_k,
            "num_shared_heads": self.num_shared,
            "gate_mode": self.gate_mode,
        }
        return Case(name, "MoHRouter", why, attributes, self.build)

    def build(self, rng: np.random.Generator) -> Arrays:
        return (
            self._input(rng, self.num_routed, present=self.num_routed > 0),
            self._input(rng, self.num_shared, present=self.shared_logits),
            self._input(rng, 2, present=self.staged),
        )

    def _input(self, rng: np.random.Generator, size: int, *, present: bool) -> np.ndarray | None:
        shape = (self.batch, self.seq_len, size)
        return self.logits(rng, shape).astype(np.float32) if present else None


def _flat(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, 0.5)


def _tied(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Two distinct values only, so that the last chosen head is tied in almost every token."""
    return rng.integers(0, 2, shape).astype(np.float64)


def _negative(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return -10.0 - np.abs(rng.standard_normal(shape))


def _very_negative(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return -200.0 - np.abs(rng.standard_normal(shape))


def _large(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    ranks = np.broadcast_to(np.arange(shape[-1], dtype=np.float64), shape)
    logits: np.ndarray = rng.permuted(300.0 * ranks, axis=-1)
    return logits


def _underflowing(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All heads but the last have probability 0 in float32: they tie, with different logits."""
    logits = np.empty(shape)
    logits[:] = np.arange(shape[-1])
    logits[..., -1] = 500.0
    return logits


def _very_negative_but_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Finite sentinels, as routers write them over heads that must not be chosen."""
    logits = np.full(shape, -30000.0)
    logits[..., 1:4] = rng.standard_normal(logits[..., 1:4].shape)
    return logits


_TWO_STAGE = "The two-stage router: shared and routed heads, each weighed."

_TABLE: Mapping[str, tuple[str, _Setup]] = {
    "two_stage": (_TWO_STAGE, _Setup()),
    "two_stage_odd": (
        "Sizes that no vector width divides.",
        _Setup(num_routed=37, top_k=13, num_shared=3, batch=3, seq_len=37),
    ),
    "single_token": ("One token.", _Setup(batch=1, seq_len=1)),
    "one_routed_head": ("R = k = 1: the gate is 1 before weighing.", _Setup(num_routed=1, top_k=1)),
    "top_1": ("One chosen head has gate 1 before weighing.", _Setup(top_k=1)),
    "top_all": ("top_k = R: nothing is closed.", _Setup(top_k=7)),
    "no_shared": (
        "Routed heads only.",
        _Setup(num_shared=0, shared_logits=False, staged=False),
    ),
    "no_shared_staged": (
        "The second stage is that of the routed heads, first or not.",
        _Setup(num_shared=0, shared_logits=False),
    ),
    "one_shared": (
        "One shared head has no logits: its gate is the stage weight.",
        _Setup(num_shared=1, shared_logits=False),
    ),
    "one_shared_with_logits": (
        "The softmax of one logit is 1.",
        _Setup(num_shared=1),
    ),
    "shared_always_one": (
        "Without logits and stage every shared gate is 1.",
        _Setup(num_shared=3, shared_logits=False, staged=False),
    ),
    "shared_unweighed": ("Shared logits without a stage.", _Setup(staged=False)),
    "fewer_routed": (
        "More shared heads than routed ones.",
        _Setup(num_routed=5, num_shared=9),
    ),
    "all_shared": (
        "A layer without routed heads: all gates open, no choice.",
        _Setup(num_routed=0, top_k=0, num_shared=5, staged=False),
    ),
    "all_shared_staged": (
        "The same, weighed by the first stage.",
        _Setup(num_routed=0, top_k=0, num_shared=5),
    ),
    "all_shared_stage_only": (
        "The stage alone gives batch and length.",
        _Setup(num_routed=0, top_k=0, num_shared=5, shared_logits=False),
    ),
    "mask_mode": (
        "Every open gate is 1, shared heads too.",
        _Setup(gate_mode="mask", shared_logits=False, staged=False),
    ),
    "mask_mode_no_shared": (
        "The same without shared heads.",
        _Setup(gate_mode="mask", num_shared=0, shared_logits=False, staged=False),
    ),
    "mask_mode_ties": (
        "Ties go to the lowest head.",
        _Setup(gate_mode="mask", shared_logits=False, staged=False, logits=_tied),
    ),
    "mask_mode_underflowing": (
        "The choice is by float32 probability, not by logit.",
        _Setup(gate_mode="mask", shared_logits=False, staged=False, logits=_underflowing),
    ),
    "flat_logits": ("All equal: the first k heads.", _Setup(logits=_flat)),
    "tied_logits": ("Ties at the border go to the lowest head.", _Setup(logits=_tied, seq_len=37)),
    "negative_logits": (
        "All-negative logits: softmax first, a zero is not the neutral element.",
        _Setup(logits=_negative),
    ),
    "very_negative_logits": (
        "exp underflows unless the maximum is taken off first.",
        _Setup(logits=_very_negative),
    ),
    "large_logits": ("exp overflows unless the maximum is taken off first.", _Setup(logits=_large)),
    "underflowing": (
        "Heads whose float32 probability is 0 tie, and the lowest are chosen with gate 0.",
        _Setup(logits=_underflowing, staged=False),
    ),
    "sentinels": (
        "More choices than heads that may be chosen.",
        _Setup(logits=_very_negative_but_one, top_k=4, shared_logits=False, staged=False),
    ),
    "empty_batch": ("No sequence at all.", _Setup(batch=0)),
    "empty_sequence": ("No token.", _Setup(seq_len=0, shared_logits=False)),
    "empty_sequence_mask_mode": (
        "No token, gates of 1.",
        _Setup(seq_len=0, gate_mode="mask", shared_logits=False, staged=False),
    ),
    "empty_sequence_all_shared": (
        "No token, no choice.",
        _Setup(seq_len=0, num_routed=0, top_k=0, num_shared=5),
    ),
}

CASES = in_every_dtype(tuple(setup.case(name, why) for name, (why, setup) in _TABLE.items()))
