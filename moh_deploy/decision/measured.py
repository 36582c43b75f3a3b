"""The measurements of a comparison: what verdicts rest on, and what else is worth knowing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moh_deploy.decision.decide import ArmEvidence
from moh_deploy.decision.routing_bias import LayerRouting
from moh_deploy.perf.bench.latency import Timing
from moh_deploy.runtime.base import Description


@dataclass(frozen=True)
class SizedRun:
    """All arms at one set of sizes.

    Attributes:
        inputs: `recorded`, `random`, or the file whose first samples they are.
        sizes: Of the dynamic dimensions.
        samples: In one run.
        timings: Name of each arm to its rounds.
        without_routers: The same of those that also ran without their routers.
    """

    inputs: str
    sizes: Mapping[str, int]
    samples: int
    timings: Mapping[str, Timing]
    without_routers: Mapping[str, Timing]


@dataclass(frozen=True)
class EdgeCases:
    """Counts of the edge cases of `moh-deploy probe` that an arm passed and failed.

    Attributes:
        passed: How many cases.
        failed: How many cases.
        failures: What failed, the first of them.
    """

    passed: int
    failed: int
    failures: tuple[str, ...]


@dataclass(frozen=True)
class ArmFacts:
    """Memory, skipped work, routing and edge cases of one arm.

    Attributes:
        memory_bytes: The most that a process had that loaded it and ran it once.
        skipped_share: Share of the rows of attention that it did not compute.
        routing: How evenly its routers use their heads.
        edge_cases: See `EdgeCases`.
        not_measured: Name of what is missing to the reason.
    """

    memory_bytes: int | None = None
    skipped_share: float | None = None
    routing: tuple[LayerRouting, ...] = ()
    edge_cases: EdgeCases | None = None
    not_measured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredArms:
    """All that was measured of all arms.

    Attributes:
        evidence: What verdicts rest on.
        runs: The rounds of each of the sizes.
        facts: Name of each arm to the rest.
        described: Name of each arm to what ran it.
    """

    evidence: ArmEvidence
    runs: Sequence[SizedRun]
    facts: Mapping[str, ArmFacts]
    described: Mapping[str, Description]
