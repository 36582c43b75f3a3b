"""The report of a comparison: the decision, and all that it rests on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.decision.decide import ArmVerdict, WouldDo
from moh_deploy.decision.document import document_of
from moh_deploy.decision.measured import EdgeCases
from moh_deploy.decision.promise import Promise
from moh_deploy.decision.routing_bias import LayerRouting
from moh_deploy.decision.size_break_even import SizeBreakEven
from moh_deploy.report.document import Document
from moh_deploy.report.json import HIDDEN, in_json, json_members, to_json
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.system.digest import sha256_of_json
from moh_deploy.system.json_text import to_json_text


@dataclass(frozen=True)
class QualityFigure:
    """A metric of one arm, by itself.

    Attributes:
        metric: Its name.
        better: Which values are better.
        samples: How many were scored.
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
        sizes: Of the dynamic dimensions.
        inputs: `recorded`, `random`, or the file whose first samples they are.
        samples: In one run.
        rounds: How many runs were timed.
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
        name: What the plan calls it.
        kind: What it is, in words.
        dense: It computes every head.
        is_bound: It shows what could be gained, and cannot be served itself: no decision is for it.
        runtime: What ran it.
        verdict: Against the reference.
        look: In which look the verdict was found; None of the reference.
        quality: One entry for each metric of the plan.
        latency: One for each of the sizes.
        memory_mib: The most that a process had that loaded it and ran it once.
        cpu_ms: CPU time of a run at the first of the sizes.
        skipped_share: Share of the rows of attention that it did not compute.
        routing: How evenly its routers use their heads.
        edge_cases: How it came through the cases of `probe`.
        promises: What the plan promises of it, and what came.
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


@dataclass(frozen=True)
class DecisionReport(Report):
    """The decision that a plan asked for.

    Attributes:
        schema_version: Of its JSON.
        goal: What was to be decided.
        plan_digest: The sha256 of what the plan says, without its `seconds`.
        plan: The plan itself, as JSON with all defaults.
        reference: The arm that all others are compared with.
        look: Of this run.
        looks: How many the plan allows.
        confidence: No win and no loss is wrong with this confidence.
        level: What this look may spend of being wrong, in wins and in losses each.
        quantile: Of the times that are compared; None if time does not count.
        machine: What it ran on.
        data: The files of samples and labels.
        arms: The reference first.
        would_do: Arms without routers that do as well as all with them.
        break_even: At which sizes arms begin or stop to be faster than others; empty where no
            dimension was timed at two sizes.
        notes: What else a reader has to know.
        kernels: The kernel library of the reference here.
    """

    schema_version: Literal[1] = field(default=1, init=False)
    goal: str
    plan_digest: str
    plan: str
    reference: str
    look: int
    looks: int
    confidence: float
    level: float
    quantile: float | None
    machine: str
    data: tuple[DataFile, ...]
    arms: tuple[ArmReport, ...]
    would_do: tuple[WouldDo, ...]
    break_even: tuple[SizeBreakEven, ...]
    notes: tuple[str, ...]
    kernels: KernelUse = field(metadata=HIDDEN)

    @property
    @in_json()
    def decision(self) -> str:
        """The answer in a sentence: what a reader takes along."""
        return f"{self.headline[0]}: {self.headline[1]}"

    @property
    @in_json()
    def sha256(self) -> str:
        """The digest of all else in the JSON, by which `cost` knows an edited file."""
        others = {
            name: to_json(getattr(self, attribute))
            for name, attribute, _ in json_members(type(self))
            if name != "sha256"
        }
        # Of what is printed: there numbers that are not finite are strings.
        return sha256_of_json(json.loads(to_json_text(others)))

    @property
    def compares_median(self) -> bool:
        """Whether it is medians that are compared."""
        return self.quantile == 0.5

    @property
    def headline(self) -> tuple[str, str]:
        """The answer in a word or two, and the sentence behind it."""
        wins = self._named("win")
        if self.would_do:
            simple, routed = self.would_do[0].name, " and ".join(map(_quoted, self._routed()))
            # The plan's own word for it, where that is what it is.
            word = "DENSE WOULD DO" if self._is_dense(simple) else "A SIMPLER ARM WOULD DO"
            return word, (
                f"{_quoted(simple)} chooses no heads, and loses no more than the plan allows"
                f" against {routed}, which"
                f" {'is' if len(self._routed()) == 1 else 'are'} not as much faster as it asks for."
            )
        if wins:
            better = "is" if len(wins) == 1 else "are"
            names = ", ".join(map(_quoted, wins))
            return "WIN", f"{names} {better} worth it against {_quoted(self.reference)}."
        if not self._named("cannot tell"):
            return "KEEP THE REFERENCE", f"no arm is worth it against {_quoted(self.reference)}."
        open_ones = ", ".join(map(_quoted, self._named("cannot tell")))
        return "CANNOT TELL", f"these data cannot tell whether {open_ones} would be worth it."

    def document(self) -> Document:
        """Return one page of it."""
        return document_of(self)

    def _named(self, verdict: str) -> list[str]:
        return [arm.name for arm in self.arms if arm.verdict == verdict and not arm.is_bound]

    def _routed(self) -> tuple[str, ...]:
        return self.would_do[0].beside

    def _is_dense(self, name: str) -> bool:
        return next(arm.dense for arm in self.arms if arm.name == name)


def _quoted(name: str) -> str:
    return f"'{name}'"
