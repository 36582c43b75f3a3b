"""Rounds that were timed on two cores, most of which other processes took.

Arms are a dense model, the same with MoH on kernels, and that on function bodies. Ten of the 14
recordings are of runs of less than 3 ms: other processes made their means 1.3 to 4.6 times as long
as the medians.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moh_deploy.decision.cost.decided import Decided
from moh_deploy.decision.latency_promise import block_means
from moh_deploy.validate.reference.differences import Float64Array

ARMS = ("dense", "moh", "bodies")
_UNIT_MS = 1e-4


def recordings() -> dict[str, Float64Array]:
    """Return the milliseconds of each recording, [arms, 1000 rounds]."""
    with np.load(Path(__file__).parent / "recorded_rounds.npz") as file:
        return {name: file[name] * _UNIT_MS for name in file.files}


def decided(rounds: Float64Array) -> Decided:
    """Return a decision that rests on some rounds, [arms, rounds]."""
    arms = [
        {
            "name": name,
            "verdict": "win" if index else "reference",
            "dense": not index,
            "is_bound": False,
            "latency": [
                {
                    "sizes": {"batch": 1},
                    "p50_ms": float(np.median(times)),
                    "block_means_ms": list(block_means(times.tolist())),
                    "energy_mj": None,
                }
            ],
        }
        for index, (name, times) in enumerate(zip(ARMS, rounds, strict=True))
    ]
    return Decided.model_validate(
        {
            "schema_version": 1,
            "plan_digest": "0" * 64,
            "reference": ARMS[0],
            "confidence": 0.95,
            "machine": "two cores",
            "arms": arms,
            "would_do": [],
        }
    )
