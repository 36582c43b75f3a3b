"""The figures of each arm that a decision rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moh_deploy.decision.decide import ArmVerdict
from moh_deploy.decision.measured import EdgeCases, LayerRouting
from moh_deploy.decision.promise import Promise


@dataclass(frozen=True)
class QualityFigure:
    """A metric of one arm, by itself.

    Attributes:
        value: NaN if a sample has no score.
        low: The true value is above this, with the plan's confidence; None where there is none.
        high: And below this.
    """

    metric: str
    better: Literal["higher", "lower"]
    samples: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class LatencyFigure:
    """The times of one arm at one set of sizes.

    Attributes:
        inputs: `recorded`, `random`, or the file whose first samples they are.
        samples: In one run.
        p50_ms: The median.
        p50_low_ms: The true median is above this, with the plan's confidence; None of too few.
        p50_high_ms: And below this.
        quantile_ms: The quantile that the plan compares.
        throughput_per_s: Samples in a second, by the median time.
        cpu_ms: Mean CPU time of a run, all threads; None where it runs elsewhere.
        energy_mj: None; earlier versions counted energy.
        router_share: Share of the time that its routers take; None where that is not measured.
        block_means_ms: Mean times of at most 40 blocks of rounds, in their order; all arms have
            blocks of the same rounds. `moh-deploy cost` prices these.
    """

    sizes: dict[str, int]
    inputs: str
    samples: int
    rounds: int
    p50_ms: float
    p50_low_ms: float | None
    p50_high_ms: float | None
    quantile_ms: float
    throughput_per_s: float
    cpu_ms: float | None
    router_share: float | None
    block_means_ms: tuple[float, ...]
    energy_mj: None = None


@dataclass(frozen=True)
class ArmReport:
    """One arm.

    Attributes:
        is_bound: It shows what could be gained, and cannot be served itself: no decision is for it.
        look: In which look the verdict was found; None of the reference.
        cpu_ms: CPU time of a run at the first of the sizes.
        edge_cases: How it came through the cases of `probe`.
        p_win: The probability of such data, were a promise just not kept; None of the reference.
        p_loss: The same, were all of them just kept.
        would_tell: How much more would tell, where it cannot be told.
        not_measured: Name of what is missing to the reason.
    """

    name: str
    kind: str
    dense: bool
    is_bound: bool
    runtime: str
    verdict: ArmVerdict | Literal["reference"]
    look: int | None
    quality: tuple[QualityFigure, ...]
    latency: tuple[LatencyFigure, ...]
    memory_mib: float | None
    cpu_ms: float | None
    skipped_share: float | None
    routing: tuple[LayerRouting, ...]
    edge_cases: EdgeCases | None
    promises: tuple[Promise, ...]
    p_win: float | None
    p_loss: float | None
    would_tell: tuple[str, ...]
    not_measured: Mapping[str, str]


@dataclass(frozen=True)
class DataFile:
    """A file of inputs or labels, so that nobody takes other data for these."""

    path: str
    sha256: str
