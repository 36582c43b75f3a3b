"""The report of costs: whether an arm pays, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.decision.cost.prices import Estimate, PaidBack
from moh_deploy.decision.size_break_even import SizeBreakEven
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.cost_model.break_even import LayerBreakEven
from moh_deploy.report.document import (
    Block,
    Cell,
    Column,
    Document,
    Fact,
    Section,
    Share,
    Status,
    Table,
    Text,
    Verdict,
)
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


_GOOD = {"pays": True, "does not pay": False, "cannot tell": None, "reference": None}
_EXTRAPOLATED = "extrapolated"


def money(sum_of: Estimate, currency: str) -> str:
    """Return `123 USD (110 to 140)`."""
    return f"{amount(sum_of.value)} {currency} ({amount(sum_of.low)} to {amount(sum_of.high)})"


def months_text(months: float | None) -> str:
    """Return a number of months, or never."""
    return "never" if months is None else amount(months)


def cost_document(report: CostReport) -> Document:
    """Return what the report says."""
    blocks: list[Block] = [Section("What arms cost", tuple(_arms(report)))]
    blocks += [*_sizes(report), *_predicted(report)]
    return Document(
        "cost",
        tuple(blocks),
        _verdict(report),
        facts=tuple(_facts(report)),
        remarks=(*report.notes, _basis(report), f"Plan: sha256 {report.plan_digest}."),
    )


def _verdict(report: CostReport) -> Verdict:
    word, sentence = report.headline
    return Verdict(word, True if word == "PAYS" else None, sentence, (sentence,))


def _facts(report: CostReport) -> Iterator[Fact]:
    best = report.best
    if best is not None and best.saving_per_month is not None and best.paid_back is not None:
        saving = best.saving_per_month
        between = f"{amount(saving.low)} to {amount(saving.high)}"
        value = f"{amount(saving.value)} {report.currency}"
        yield Fact(f"saved a month by {best.name}", value, between)
        back = best.paid_back
        if report.engineering:
            months, low, high = (months_text(month) for month in (back.months, back.low, back.high))
            yield Fact(
                "paid back after",
                months if months == "never" else f"{months} months",
                f"{low} to {high}",
            )
    yield Fact("requests a month", amount(report.requests_per_month))


def _basis(report: CostReport) -> str:
    paid = "whole machines" if report.billed == "by-machine" else "hours that are used"
    return (
        f"Paid are {paid} of {report.machine}. Intervals are those of measured times and of"
        " utilization; traffic and prices are as given."
    )


def _arms(report: CostReport) -> Iterator[Block]:
    unit = report.currency
    columns = ["arm", "verdict", "pays", "#ms a request", f"#a million requests, {unit}"]
    columns += [f"#a month, {unit}", f"#saved a month, {unit}", "#paid back, months"]
    columns += [f"#net after {report.months:g} months, {unit}"]
    rows = [_arm(arm) for arm in report.arms]
    yield Table("All arms, with intervals", columns, rows, id="costs")
    if report.engineering:
        once = amount(report.engineering)
        yield Text(f"Engineering: {once} {unit} once, until another arm serves.")


def _arm(arm_cost: ArmCost) -> list[Cell]:
    return [
        arm_cost.name,
        arm_cost.verdict,
        Status(arm_cost.pays, _GOOD[arm_cost.pays]),
        _ends(arm_cost.ms_per_request),
        _ends(arm_cost.per_million),
        _ends(arm_cost.per_month),
        _ends(arm_cost.saving_per_month),
        None if arm_cost.paid_back is None else _back(arm_cost.paid_back),
        _ends(arm_cost.net),
    ]


def _sizes(report: CostReport) -> Iterator[Block]:
    columns = ["sizes", "#share of requests", "arm", "#ms", "#saved of the reference's", "times"]
    rows: list[list[Cell]] = []
    for index, asked in enumerate(report.traffic):
        for arm in report.arms:
            requests = arm.by_size[index]
            how = _EXTRAPOLATED if requests.extrapolated else "measured"
            name, gain = sizes_text(asked.sizes), _percents(requests.gain)
            rows.append([name, Share(asked.share), arm.name, _ends(requests.ms), gain, how])
    table = Table("Arms at the sizes of traffic", columns, rows, id="sizes")
    lines = [Text(_where_faster(arm)) for arm in report.arms[1:]]
    lines += [
        Text(f"'{size_outcome.arm}' against '{size_outcome.rival}': {size_outcome.outcome}.")
        for size_outcome in report.break_even
    ]
    yield Section("At which sizes it pays", (*lines, table))


def _where_faster(arm: ArmCost) -> str:
    """Say at which sizes an arm saves time, and how much of traffic that is."""
    sure = [
        size_cost
        for size_cost in arm.by_size
        if size_cost.gain is not None and size_cost.gain.low > 0
    ]
    slower = [
        size_cost
        for size_cost in arm.by_size
        if size_cost.gain is not None and size_cost.gain.high < 0
    ]
    share, lost = (sum(size_cost.share for size_cost in found) for found in (sure, slower))
    text = f"'{arm.name}' is faster for {100 * share:.3g} % of requests, slower for"
    text += f" {100 * lost:.3g} %"
    if slower:
        text += f" ({'; '.join(sizes_text(size_cost.sizes) for size_cost in slower)})"
    left = 100 * (1 - share - lost)
    return f"{text}; of {left:.3g} % it cannot be told." if left > 1e-6 else f"{text}."


def _predicted(report: CostReport) -> Iterator[Block]:
    if report.predicted is None:
        return
    title = "Where skipping heads breaks even"
    if not report.predicted:
        none = Text("Nothing can be predicted for the layers of this package.")
        yield Section(title, (none, *_tuned(report)))
        return
    about = Text(
        "Predicted for attention and the projections beside it, against standard operators that"
        " compute every head; routers are not counted."
    )
    first, last = report.predicted[0].sizes[0].batch, report.predicted[0].sizes[-1].batch
    columns = ["layer", "#open heads", "#pays from batch", f"#open heads up to, batch {first}"]
    columns += [f"#open heads up to, batch {last}"] if last > first else []
    rows: list[list[Cell]] = []
    for even in report.predicted:
        shares = [end.share for end in (even.sizes[0], even.sizes[-1])][: len(columns) - 3]
        row: list[Cell] = [even.path or "all layers", Share(even.active_share)]
        row.append(str(even.pays_from or "never"))
        rows.append([*row, *("never" if share is None else Share(share) for share in shares)])
    yield Section(title, (about, Table("Layers", columns, rows, id="break-even"), *_tuned(report)))


def _tuned(report: CostReport) -> Iterator[Text | Table]:
    """Yield what was measured of the same, where it was."""
    if not report.tuned:
        yield Text(
            "Not measured by layer: moh-deploy tune at two batch sizes or more writes times of"
            " layers into the package."
        )
        return
    yield Text("Measured by moh-deploy tune, against the same; times are medians.")
    rows: list[list[Cell]] = [
        [
            even.arm,
            f"{even.dim} {', '.join(str(gain.size) for gain in even.gains)}",
            ", ".join(f"{100 * gain.gain:.1f} %" for gain in even.gains),
            even.outcome,
        ]
        for even in report.tuned
    ]
    columns: list[Column | str] = ["layer", "sizes", "time saved", Column("it is", width="words")]
    yield Table("Layers as they were timed", columns, rows, id="tuned")


def _back(back: PaidBack) -> str:
    text = [months_text(month) for month in (back.months, back.low, back.high)]
    return f"{text[0]} ({text[1]} to {text[2]})"


def _ends(estimate: Estimate | None) -> str | None:
    if estimate is None:
        return None
    if estimate.low == estimate.high:
        return amount(estimate.value)
    return f"{amount(estimate.value)} ({amount(estimate.low)} to {amount(estimate.high)})"


def _percents(estimate: Estimate | None) -> str | None:
    if estimate is None:
        return None
    return f"{100 * estimate.value:.3g} % ({100 * estimate.low:.3g} to {100 * estimate.high:.3g})"
