"""Data of alternatives whose truth is known: samples, and times whose neighbours are alike."""

from pathlib import Path

import numpy as np

from moh_deploy.decision.alternative import Alternative
from moh_deploy.decision.decide import AlternativeEvidence, SizedTimes
from moh_deploy.decision.measured import (
    AlternativeFacts,
    DataFile,
    EdgeCases,
    LayerRouting,
    MeasuredAlternatives,
    SizedRun,
)
from moh_deploy.decision.plan import Plan, plan_of
from moh_deploy.decision.promise import SampleScores
from moh_deploy.decision.report import DecisionReport
from moh_deploy.decision.summarise import report_of
from moh_deploy.perf.bench.candidate import Timing
from moh_deploy.runtime.base import AS_IT_IS, Description
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.validate.accuracy.choose import TopK
from moh_deploy.validate.reference.differences import Float64Array
from tests.kernel_library import NO_KERNELS

REFERENCE = "reference"


def plan(alternatives: int = 1, **changes: object) -> Plan:
    """Return a plan with alternatives 0, 1, ...: may lose a point, has to gain a tenth."""
    document = {
        "goal": "Tell what is known",
        "reference": REFERENCE,
        "arms": {name: {"path": name} for name in (REFERENCE, *map(str, range(alternatives)))},
        "inputs": ["x.npz"],
        "labels": "labels.npy",
        "quality": {"metric": "top-1", "may_lose": 0.01},
        "latency": {"quantile": 0.5, "at_least": 0.1},
        **changes,
    }
    return plan_of(document, "plan.yaml")


def scores(rng: np.random.Generator, losses: list[float], *, samples: int = 4000) -> SampleScores:
    """Return right-or-wrong scores; each alternative loses so much against a reference of 90 %.

    Of the samples that the reference gets right, alternatives get some wrong by chance, and the
    other way
    round: 1 % at least change to each side.
    """
    right = rng.random(samples) < 0.9
    totals = {REFERENCE: right.astype(np.float64)}
    for index, loss in enumerate(losses):
        lost = right & (rng.random(samples) < (0.01 + max(loss, 0.0)) / 0.9)
        won = ~right & (rng.random(samples) < (0.01 + max(-loss, 0.0)) / 0.1)
        totals[str(index)] = ((right & ~lost) | won).astype(np.float64)
    return SampleScores(TopK(1, "logits"), np.ones(samples), totals)


def times(
    rng: np.random.Generator, gains: list[float], *, rounds: int = 400, memory: float = 0.8
) -> SizedTimes:
    """Return times of rounds; each alternative takes so much less than a reference of 10 ms.

    All share noise that stays for a while, and each has some of its own that stays as long.
    """
    shared = _noise(rng, rounds, memory)
    wall = {
        name: tuple(
            (10 * (1 - gain) * np.exp(0.1 * shared + 0.03 * _noise(rng, rounds, memory))).tolist()
        )
        for name, gain in {
            REFERENCE: 0.0,
            **dict(zip(map(str, range(len(gains))), gains, strict=True)),
        }.items()
    }
    return SizedTimes({"batch": 1}, 1, wall)


def evidence(
    rng: np.random.Generator,
    losses: list[float],
    gains: list[float],
    *,
    samples: int = 4000,
    rounds: int = 400,
) -> AlternativeEvidence:
    """Return both of some alternatives."""
    return AlternativeEvidence(
        [scores(rng, losses, samples=samples)], [times(rng, gains, rounds=rounds)]
    )


def _noise(rng: np.random.Generator, rounds: int, memory: float) -> Float64Array:
    """Return numbers of variance 1, each like the one before."""
    fresh = rng.standard_normal(rounds)
    found = np.empty(rounds)
    found[0] = fresh[0]
    for index in range(1, rounds):
        found[index] = memory * found[index - 1] + (1 - memory**2) ** 0.5 * fresh[index]
    return found


# Reports of decisions, of made-up data.


def decision_report(
    losses: tuple[float, ...] = (0.0, 0.03, 0.0),
    gains: tuple[float, ...] = (0.2, 0.5, 0.1),
    *,
    dense: frozenset[str] = frozenset(),
    name: str = "",
    samples: int = 4000,
) -> DecisionReport:
    """Return a report of alternatives 0, 1, ...: a win, a loss, and one that cannot be told.

    Args:
        losses: Of each alternative, in top-1.
        gains: Of each alternative, in time.
        dense: Names of alternatives that compute every head.
        name: What stands behind the names of alternatives.
        samples: How many there are.
    """
    rng = np.random.default_rng(1)
    asked = plan(len(losses), sizes=[{"batch": 1}])
    scored = scores(rng, list(losses), samples=samples)
    timed = times(rng, list(gains))
    timings = {item: Timing(ms, ms, ms) for item, ms in timed.wall_ms.items()}
    alternatives = [
        Alternative(
            alternative,
            f"package build/{alternative}{name}",
            OnnxFile(Path(alternative)),
            AS_IT_IS,
            dense=alternative in dense,
            chooses=alternative not in dense,
        )
        for alternative in asked.arms
    ]
    routing = LayerRouting("blocks.0.attn", 8, 4000, 0.7, 0, 1, 0.93)
    facts = AlternativeFacts(
        2**27, 0.3, (routing,), EdgeCases(20, 1, ("ties, blocks.0.attn: differs",))
    )
    measured = MeasuredAlternatives(
        AlternativeEvidence([scored], [timed]),
        [SizedRun("held-out.npz", timed.sizes, 1, timings, {})],
        dict.fromkeys(asked.arms, facts),
        dict.fromkeys(asked.arms, Description("ONNX Runtime 1.32.0", NO_KERNELS)),
    )
    files = (DataFile("held-out.npz", "0" * 64),)
    assert asked.reference == REFERENCE
    return report_of(asked, alternatives, measured, look=1, earlier={}, data=files)
