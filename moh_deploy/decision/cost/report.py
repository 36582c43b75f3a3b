"""The report of costs: whether an alternative pays, and what each costs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.decision.cost.prices import Estimate, SizedRequests
from moh_deploy.decision.size_break_even import SizeBreakEven
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.cost_model.prediction import LayerBreakEven
from moh_deploy.report import document as page
from moh_deploy.report.report import Report, amount, in_json, shown_verdict

Pays = Literal["pays", "does not pay", "cannot tell", "reference"]


@dataclass(frozen=True)
class SizeCost:
    """One alternative at one of the sizes of traffic."""

    sizes: dict[str, int]
    share: float
    ms: Estimate  # mean time of a run
    gain: Estimate | None  # the share of the reference's time that it saves; None of the reference
    extrapolated: bool  # it was not measured at this size


@dataclass(frozen=True)
class PaidBack:
    """After how many months an alternative has paid for the engineering; None: never."""

    months: float | None  # as measured
    low: float | None  # at best
    high: float | None  # at worst


@dataclass(frozen=True)
class AlternativeCost:
    """Costs of one alternative: of a request, a million of them, and a month, with intervals."""

    name: str
    verdict: Literal["win", "loss", "cannot tell", "reference"]
    dense: bool
    pays: Pays  # whether it has paid for the engineering in time, at the worst of its interval
    ms_per_request: Estimate  # mean time of a request of this traffic
    per_million: Estimate
    per_month: Estimate
    saving_per_month: Estimate | None  # what that is less than the reference; None of the reference
    # After how many months it has paid for the engineering; None of the reference.
    paid_back: PaidBack | None
    net: Estimate | None  # what is left of the savings of all `months`; None of the reference
    by_size: tuple[SizeCost, ...]


@dataclass(frozen=True)
class SizeOutcome:
    """At which sizes an alternative is faster than another, by the times of the decision."""

    arm: str
    rival: str
    outcome: str


@dataclass(frozen=True)
class CostReport(Report):
    """Costs of all alternatives of a decision.

    Attributes:
        plan_digest: The sha256 of the plan that the decision is of.
        measured_on: The machine that times are of.
        billed: Whether whole machines are paid.
        traffic: The sizes that are asked for, the most frequent first.
        arms: The reference first.
        break_even: At which sizes the decision found alternatives to begin or stop to be faster.
        sensitivity_of: The alternative that saves most; None where there is no other than the
            reference.
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
    traffic: tuple[SizedRequests, ...]
    arms: tuple[AlternativeCost, ...]
    would_do: tuple[str, ...]
    break_even: tuple[SizeOutcome, ...]
    sensitivity_of: str | None
    notes: tuple[str, ...]
    predicted: tuple[LayerBreakEven, ...] | None = None
    tuned: tuple[SizeBreakEven, ...] | None = None
    sensitivity: None = field(default=None, init=False)
    fleets: None = field(default=None, init=False)

    @property
    @in_json()
    def decision(self) -> str:
        """The answer in a sentence: what a reader takes along."""
        return f"{self.headline[0]}: {self.headline[1]}"

    @property
    def best(self) -> AlternativeCost | None:
        """The alternative that saves most."""
        return next(
            (alternative for alternative in self.arms if alternative.name == self.sensitivity_of),
            None,
        )

    @property
    def headline(self) -> tuple[str, str]:
        """The answer in a word or two, and the sentence behind it."""
        best, reference = self.best, self.arms[0]
        if self.would_do:
            name = self.would_do[0]
            simple = next(
                (alternative for alternative in self.arms if alternative.name == name), reference
            )
            word = "DENSE WOULD DO" if simple.dense else "A SIMPLER ALTERNATIVE WOULD DO"
            return word, (
                f"by the plan '{name}' does as well as all that choose heads, and it costs"
                f" {money(simple.per_month, self.currency)} a month."
            )
        if best is None or best.pays == "does not pay":
            word = "DENSE WOULD DO" if reference.dense else "DOES NOT PAY"
            return word, (
                f"no alternative pays against '{reference.name}', which costs"
                f" {money(reference.per_month, self.currency)} a month.{self._what_it_takes()}"
            )
        assert best.saving_per_month is not None
        assert best.paid_back is not None
        assert best.net is not None
        saves = f"'{best.name}' saves {money(best.saving_per_month, self.currency)} a month"
        saves = text = f"{saves} against '{self.reference}'"
        months = best.paid_back.months
        if self.engineering:
            text += ", and never pays for the engineering"
            if months is not None:
                text = f"{saves}, and has paid for itself in {amount(months)} months"
        if best.pays == "pays":
            return "DENSE WOULD DO" if best.dense else "PAYS", f"{text}."
        if best.net.low > 0:
            open_ = "The decision does not tell whether it keeps what the plan promises."
        else:
            net = money(best.net, self.currency)
            open_ = f"After {self.months:g} months that is {net}: it may be a loss."
        return "INCONCLUSIVE", f"{text}. {open_}"

    def _what_it_takes(self) -> str:
        """Say how much more traffic would pay for the engineering, where more would."""
        best = self.best
        if best is None or best.saving_per_month is None or best.verdict == "loss":
            return ""
        saving = best.saving_per_month.value
        # Whole machines are saved in steps: no ratio tells how many requests that takes.
        if saving <= 0 or not self.engineering or self.billed == "by-machine":
            return ""
        # Paid by use, savings rise with the requests.
        times = self.engineering / (self.months * saving)
        needed = float(f"{self.requests_per_month * times:.3g}")  # more digits would be made up
        saves = f" '{best.name}' saves {money(best.saving_per_month, self.currency)}"
        return (
            f"{saves}: that would pay for the engineering within {self.months:g} months"
            f" from about {amount(needed)} requests a month on, {amount(times)} times as many."
        )

    def document(self) -> page.Document:
        """Return one page of it."""
        word, sentence = self.headline
        paid = "whole machines" if self.billed == "by-machine" else "hours that are used"
        basis = (
            f"Paid are {paid} of {self.machine}. Intervals are those of measured times and of"
            " utilization; traffic and prices are as given."
        )
        return page.Document(
            "cost",
            (_alternatives(self), _sizes(self), *_break_even(self)),
            page.Verdict(word, True if word == "PAYS" else None, sentence, (sentence,)),
            facts=tuple(_facts(self)),
            remarks=(*self.notes, basis, f"Plan: sha256 {self.plan_digest}."),
        )


def money(sum_of: Estimate, currency: str) -> str:
    """Return `123 USD (110 to 140)`."""
    return f"{amount(sum_of.value)} {currency} ({amount(sum_of.low)} to {amount(sum_of.high)})"


def _facts(report: CostReport) -> Iterator[page.Fact]:
    best = report.best
    if best is not None and best.saving_per_month is not None and best.paid_back is not None:
        saving, back = best.saving_per_month, best.paid_back
        between = f"{amount(saving.low)} to {amount(saving.high)}"
        value = f"{amount(saving.value)} {report.currency}"
        yield page.Fact(f"saved a month by {best.name}", value, between)
        if report.engineering:
            months = "never" if back.months is None else f"{amount(back.months)} months"
            between = f"{_months(back.low)} to {_months(back.high)}"
            yield page.Fact("paid back after", months, between)
    yield page.Fact("requests a month", amount(report.requests_per_month))


def _months(months: float | None) -> str:
    return "never" if months is None else amount(months)


def _alternatives(report: CostReport) -> page.Section:
    unit = report.currency
    columns = ["alternative", "verdict", "pays", "#ms a request", f"#a million requests, {unit}"]
    columns += [f"#a month, {unit}", f"#saved a month, {unit}", "#paid back, months"]
    columns += [f"#net after {report.months:g} months, {unit}"]
    good = {"pays": True, "does not pay": False}
    rows: list[list[page.Cell]] = [
        [
            alternative.name,
            shown_verdict(alternative.verdict),
            page.Status(shown_verdict(alternative.pays), good.get(alternative.pays)),
            _ends(alternative.ms_per_request),
            _ends(alternative.per_million),
            _ends(alternative.per_month),
            _ends(alternative.saving_per_month),
            _paid_back(alternative.paid_back),
            _ends(alternative.net),
        ]
        for alternative in report.arms
    ]
    blocks: list[page.Text | page.Table] = [
        page.Table("All alternatives, with intervals", columns, rows, id="costs")
    ]
    if report.engineering:
        once = amount(report.engineering)
        blocks.append(
            page.Text(f"Engineering: {once} {unit} once, until another alternative serves.")
        )
    return page.Section("What alternatives cost", tuple(blocks))


def _sizes(report: CostReport) -> page.Section:
    columns = [
        "sizes",
        "#share of requests",
        "alternative",
        "#ms",
        "#saved of the reference's",
        "times",
    ]
    rows: list[list[page.Cell]] = [
        [
            sizes_text(asked.sizes),
            page.Share(asked.share),
            alternative.name,
            _ends(alternative.by_size[index].ms),
            _percents(alternative.by_size[index].gain),
            "extrapolated" if asked.extrapolated else "measured",
        ]
        for index, asked in enumerate(report.traffic)
        for alternative in report.arms
    ]
    lines = [page.Text(_where_faster(alternative)) for alternative in report.arms[1:]]
    lines += [
        page.Text(f"'{even.arm}' against '{even.rival}': {even.outcome}.")
        for even in report.break_even
    ]
    table = page.Table("Alternatives at the sizes of traffic", columns, rows, id="sizes")
    return page.Section("At which sizes it pays", (*lines, table))


def _where_faster(alternative: AlternativeCost) -> str:
    """Say at which sizes an alternative saves time, and how much of traffic that is."""
    gains = [(cost, cost.gain) for cost in alternative.by_size if cost.gain is not None]
    # Told only where the whole interval is on one side of 0.
    slower = [cost for cost, gain in gains if gain.high < 0]
    share = sum(cost.share for cost, gain in gains if gain.low > 0)
    lost = sum(cost.share for cost in slower)
    text = f"'{alternative.name}' is faster for {100 * share:.3g} % of requests, slower for"
    text += f" {100 * lost:.3g} %"
    if slower:
        text += f" ({'; '.join(sizes_text(cost.sizes) for cost in slower)})"
    left = 100 * (1 - share - lost)
    return f"{text}; of {left:.3g} % it cannot be told." if left > 1e-6 else f"{text}."


def _break_even(report: CostReport) -> Iterator[page.Section]:
    """Yield where skipping heads is predicted, and was measured, to break even, by layer."""
    if report.predicted is None:
        return
    blocks: list[page.Text | page.Table] = []
    if report.predicted:
        blocks.append(
            page.Text(
                "Predicted for attention and the projections beside it, against standard operators"
                " that compute every head; routers are not counted."
            )
        )
        # The smallest batch and the largest, which may be the same.
        sizes = report.predicted[0].sizes
        ends = [0, -1] if sizes[-1].batch > sizes[0].batch else [0]
        columns = ["layer", "#open heads", "#pays from batch"]
        columns += [f"#open heads up to, batch {sizes[end].batch}" for end in ends]
        rows: list[list[page.Cell]] = [
            [
                even.path or "all layers",
                page.Share(even.active_share),
                str(even.pays_from or "never"),
                *(
                    "never" if (share := even.sizes[end].share) is None else page.Share(share)
                    for end in ends
                ),
            ]
            for even in report.predicted
        ]
        blocks.append(page.Table("Layers", columns, rows, id="break-even"))
    else:
        blocks.append(page.Text("Nothing can be predicted for the layers of this package."))
    if report.tuned:
        blocks.append(
            page.Text("Measured by moh-deploy tune, against the same; times are medians.")
        )
        timed: list[list[page.Cell]] = [
            [
                even.arm,
                f"{even.dim} {', '.join(str(gain.size) for gain in even.gains)}",
                ", ".join(f"{100 * gain.gain:.1f} %" for gain in even.gains),
                even.outcome,
            ]
            for even in report.tuned
        ]
        it_is = page.Column("it is", width="words")
        titles = [*map(page.Column, ("layer", "sizes", "time saved")), it_is]
        blocks.append(page.Table("Layers as they were timed", titles, timed, id="tuned"))
    else:
        blocks.append(
            page.Text(
                "Not measured by layer: moh-deploy tune at two batch sizes or more writes times of"
                " layers into the package."
            )
        )
    yield page.Section("Where skipping heads breaks even", tuple(blocks))


def _ends(estimate: Estimate | None) -> str | None:
    if estimate is None or estimate.low == estimate.high:
        return None if estimate is None else amount(estimate.value)
    return f"{amount(estimate.value)} ({amount(estimate.low)} to {amount(estimate.high)})"


def _percents(estimate: Estimate | None) -> str | None:
    if estimate is None:
        return None
    return f"{100 * estimate.value:.3g} % ({100 * estimate.low:.3g} to {100 * estimate.high:.3g})"


def _paid_back(back: PaidBack | None) -> str | None:
    if back is None:
        return None
    return f"{_months(back.months)} ({_months(back.low)} to {_months(back.high)})"
