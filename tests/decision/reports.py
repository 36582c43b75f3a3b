"""Reports of decisions, of made-up data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moh_deploy.decision.arm import Arm
from moh_deploy.decision.arm_report import DataFile
from moh_deploy.decision.decide import ArmEvidence
from moh_deploy.decision.measured import ArmFacts, EdgeCases, LayerRouting, MeasuredArms, SizedRun
from moh_deploy.decision.report import DecisionReport
from moh_deploy.decision.summarise import LookSetting, report_of
from moh_deploy.perf.bench.latency import Timing
from moh_deploy.runtime.base import AS_IT_IS, Description
from moh_deploy.runtime.models import OnnxFile
from tests.decision.simulated import REFERENCE, plan, scores, times
from tests.kernel_library import NO_KERNELS


def decision_report(
    losses: tuple[float, ...] = (0.0, 0.03, 0.0),
    gains: tuple[float, ...] = (0.2, 0.5, 0.1),
    *,
    dense: frozenset[str] = frozenset(),
    name: str = "",
    samples: int = 4000,
) -> DecisionReport:
    """Return a report of arms 0, 1, ...: a win, a loss, and one that cannot be told.

    Args:
        losses: Of each arm, in top-1.
        gains: Of each arm, in time.
        dense: Names of arms that compute every head.
        name: What stands behind the names of arms.
        samples: How many there are.
    """
    rng = np.random.default_rng(1)
    asked = plan(len(losses), sizes=[{"batch": 1}])
    scored = scores(rng, list(losses), samples=samples)
    timed = times(rng, list(gains))
    timings = {one: Timing(ms, ms, ms) for one, ms in timed.wall_ms.items()}
    arms = [
        Arm(
            one,
            f"package build/{one}{name}",
            OnnxFile(Path(one)),
            AS_IT_IS,
            dense=one in dense,
            chooses=one not in dense,
        )
        for one in asked.arms
    ]
    routing = LayerRouting("blocks.0.attn", 8, 4000, 0.7, 0, 1, 0.93)
    facts = ArmFacts(2**27, 0.3, (routing,), EdgeCases(20, 1, ("ties, blocks.0.attn: differs",)))
    measured = MeasuredArms(
        ArmEvidence([scored], [timed]),
        [SizedRun("held-out.npz", timed.sizes, 1, timings, {})],
        dict.fromkeys(asked.arms, facts),
        dict.fromkeys(asked.arms, Description("ONNX Runtime 1.32.0", NO_KERNELS)),
    )
    files = (DataFile("held-out.npz", "0" * 64),)
    assert asked.reference == REFERENCE
    return report_of(asked, arms, measured, LookSetting(1, {}, files))
