"""The report of costs: whether an arm pays, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.decision.cost.bill import PaidBack
from moh_deploy.decision.cost.document import cost_document, money, months_text
from moh_deploy.decision.cost.estimate import Estimate
from moh_deploy.decision.size_break_even import SizeBreakEven
from moh_deploy.perf.cost_model.break_even import LayerBreakEven
from moh_deploy.report.document import Document
from moh_deploy.report.json import HIDDEN, in_json
from moh_deploy.report.numbers import amount
from moh_deploy.report.report import Report

Pays = Literal["pays", "does not pay", "cannot tell", "reference"]


@dataclass(frozen=True)
class TrafficShare:
    """Requests of one size.

    Attributes:
        sizes: Of the dynamic dimensions.
        share: Of all requests.
        extrapolated: Its times are taken between those of two measured sizes.
    """

    sizes: dict[str, int]
    share: float
    extrapolated: bool


@dataclass(frozen=True)
class SizeCost:
    """One arm at one of the sizes of traffic.

    Attributes:
        sizes: Of the dynamic dimensions.
        share: Of all requests.
        ms: Mean time of a run.
        gain: The share of the reference's time that it saves; None of the reference.
        extrapolated: It was not measured at this size.
    """

    sizes: dict[str, int]
    share: float
    ms: Estimate
    gain: Estimate | None
    extrapolated: bool


@dataclass(frozen=True)
class ArmCost:
    """The costs of one arm: of a request, a million of them, and a month, with intervals.

    Attributes:
        name: What the plan calls it.
        verdict: Of the decision.
        dense: It computes every head.
        pays: Whether it has paid for the engineering in time, at the worst of its interval.
        ms_per_request: Mean time of a request of this traffic.
        per_million: What a million requests cost.
        per_month: What a month costs.
        saving_per_month: What that is less than the reference; None of the reference.
        paid_back: After how many months it has paid for the engineering; None of the reference.
        net: What is left of the savings of all `months`; None of the reference.
        by_size: At each of the sizes of traffic.
    """

    name: str
    verdict: Literal["win", "loss", "cannot tell", "reference"]
    dense: bool
    pays: Pays
    ms_per_request: Estimate
    per_million: Estimate
    per_month: Estimate
    saving_per_month: Estimate | None
    paid_back: PaidBack | None
    net: Estimate | None
    by_size: tuple[SizeCost, ...]


@dataclass(frozen=True)
class SizeOutcome:
    """At which sizes an arm is faster than another, by the times of the decision.

    Attributes:
        arm: The one that is to pay.
        rival: What it is compared with.
        outcome: Where it begins or stops to be faster, in words.
    """

    arm: str
    rival: str
    outcome: str


@dataclass(frozen=True)
class CostReport(Report):
    """Costs of all arms of a decision.

    Attributes:
        schema_version: Of its JSON.
        plan_digest: The sha256 of the plan that the decision is of.
        reference: The arm that all others are compared with.
        measured_on: The machine that times are of.
        machine: The machine that is paid.
        currency: Of all amounts.
        billed: Whether whole machines are paid.
        requests_per_month: How many.
        months: Within how many engineering has to be paid back.
        engineering: What it takes once.
        traffic: The sizes that are asked for, the most frequent first.
        arms: The reference first.
        would_do: Arms without routers that the decision found to do as well.
        break_even: At which sizes the decision found arms to begin or stop to be faster.
        sensitivity_of: The arm that saves most; None where there is no other than the reference.
        sensitivity: None; earlier versions varied one input at a time.
        fleets: None; earlier versions priced ten and a hundred times the traffic.
        notes: What else a reader has to know.
        predicted: Where skipping heads breaks even in the package that was asked for: each layer,
            and all together last.
        tuned: Where it was measured to break even as that package was tuned, in the same order;
            empty where it was not tuned at two sizes of a dimension.
    """

    schema_version: Literal[1] = field(default=1, init=False)
    plan_digest: str
    reference: str
    measured_on: str
    machine: str
    currency: str
    billed: Literal["by-use", "by-machine"]
    requests_per_month: float
    months: float
    engineering: float
    traffic: tuple[TrafficShare, ...]
    arms: tuple[ArmCost, ...]
    would_do: tuple[str, ...]
    break_even: tuple[SizeOutcome, ...]
    sensitivity_of: str | None
    notes: tuple[str, ...]
    predicted: tuple[LayerBreakEven, ...] | None = None
    tuned: tuple[SizeBreakEven, ...] | None = None
    sensitivity: None = field(default=None, init=False)
    fleets: None = field(default=None, init=False)
    kernels: None = field(default=None, init=False, metadata=HIDDEN)

    @property
    @in_json()
    def decision(self) -> str:
        """The answer in a sentence: what a reader takes along."""
        return f"{self.headline[0]}: {self.headline[1]}"

    @property
    def best(self) -> ArmCost | None:
        """The arm that saves most."""
        return next((arm for arm in self.arms if arm.name == self.sensitivity_of), None)

    @property
    def headline(self) -> tuple[str, str]:
        """The answer in a word or two, and the sentence behind it."""
        if self.would_do:
            name = self.would_do[0]
            simple = next((arm for arm in self.arms if arm.name == name), self.arms[0])
            word = "DENSE WOULD DO" if simple.dense else "A SIMPLER ARM WOULD DO"
            return word, (
                f"by the plan '{name}' does as well as all that choose heads, and it costs"
                f" {money(simple.per_month, self.currency)} a month."
            )
        best, reference = self.best, self.arms[0]
        if best is not None and best.pays == "pays":
            return "DENSE WOULD DO" if best.dense else "PAYS", self._paid(best)
        if best is not None and best.pays == "cannot tell":
            return "CANNOT TELL", f"{self._paid(best)} {self._why_open(best)}"
        word = "DENSE WOULD DO" if reference.dense else "DOES NOT PAY"
        return word, (
            f"no arm pays against '{reference.name}', which costs"
            f" {money(reference.per_month, self.currency)} a month.{self._what_it_takes()}"
        )

    def document(self) -> Document:
        """Return one page of it."""
        return cost_document(self)

    def _paid(self, arm: ArmCost) -> str:
        assert arm.saving_per_month is not None
        assert arm.paid_back is not None
        saves = f"'{arm.name}' saves {money(arm.saving_per_month, self.currency)} a month"
        if not self.engineering:
            return f"{saves} against '{self.reference}'."
        if arm.paid_back.months is None:
            return f"{saves} against '{self.reference}', and never pays for the engineering."
        months = months_text(arm.paid_back.months)
        return f"{saves} against '{self.reference}', and has paid for itself in {months} months."

    def _what_it_takes(self) -> str:
        """Say how much more traffic would pay for the engineering, where more would."""
        best = self.best
        if best is None or best.saving_per_month is None or best.verdict == "loss":
            return ""
        saving = best.saving_per_month.value
        # Whole machines are saved in steps: no ratio tells how many requests that takes.
        if saving <= 0 or not self.engineering or self.billed == "by-machine":
            return ""
        times = self.engineering / (self.months * saving)
        needed = float(f"{self.requests_per_month * times:.3g}")  # more digits would be made up
        saves = f" '{best.name}' saves {money(best.saving_per_month, self.currency)}"
        return (
            f"{saves}: that would pay for the engineering within {self.months:g} months"
            f" from about {amount(needed)} requests a month on, {amount(times)} times as many."
        )

    def _why_open(self, arm: ArmCost) -> str:
        assert arm.net is not None
        if arm.net.low > 0:
            return "The decision does not tell whether it keeps what the plan promises."
        return (
            f"After {self.months:g} months that is {money(arm.net, self.currency)}: it may be a"
            " loss."
        )
