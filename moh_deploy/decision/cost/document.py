"""The page of costs: the answer first, then arms, what it depends on, sizes, and fleets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.decision.cost.estimate import Estimate
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.report.charts import TornadoBar, TornadoChart
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
from moh_deploy.report.numbers import amount

if TYPE_CHECKING:
    from moh_deploy.decision.cost.bill import PaidBack
    from moh_deploy.decision.cost.report import ArmCost, CostReport

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
    blocks += _sensitivity(report)
    blocks += [*_sizes(report), *_predicted(report), *_fleets(report)]
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
            months, low, high = (months_text(one) for one in (back.months, back.low, back.high))
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
    rows = [_arm(one) for one in report.arms]
    yield Table("All arms, with intervals", columns, rows, id="costs")
    if report.engineering:
        once = amount(report.engineering)
        yield Text(f"Engineering: {once} {unit} once, until another arm serves.")


def _arm(one: ArmCost) -> list[Cell]:
    return [
        one.name,
        one.verdict,
        Status(one.pays, _GOOD[one.pays]),
        _ends(one.ms_per_request),
        _ends(one.per_million),
        _ends(one.per_month),
        _ends(one.saving_per_month),
        None if one.paid_back is None else _back(one.paid_back),
        _ends(one.net),
    ]


def _sensitivity(report: CostReport) -> Iterator[Block]:
    best = report.best
    if best is None or best.net is None or not report.sensitivity:
        return
    unit = f"net saving of {best.name} after {report.months:g} months, {report.currency}"
    bars = tuple(
        TornadoBar(one.name, one.words, one.at_low, one.at_high) for one in report.sensitivity
    )
    rows = [
        (one.name, one.words, amount(one.at_low), amount(one.at_high)) for one in report.sensitivity
    ]
    yield Section(
        "What it depends on",
        (
            TornadoChart(f"One input at a time: {unit}", unit, best.net.value, bars),
            Table(
                f"One input at a time: {unit}",
                ["input", "from, to", "#at its low end", "#at its high end"],
                rows,
                id="sensitivity",
            ),
        ),
    )


def _sizes(report: CostReport) -> Iterator[Block]:
    columns = ["sizes", "#share of requests", "arm", "#ms", "#saved of the reference's", "times"]
    rows: list[list[Cell]] = []
    for index, asked in enumerate(report.traffic):
        for arm in report.arms:
            one = arm.by_size[index]
            how = _EXTRAPOLATED if one.extrapolated else "measured"
            name, gain = sizes_text(asked.sizes), _percents(one.gain)
            rows.append([name, Share(asked.share), arm.name, _ends(one.ms), gain, how])
    table = Table("Arms at the sizes of traffic", columns, rows, id="sizes")
    lines = [Text(_where_faster(arm)) for arm in report.arms[1:]]
    lines += [
        Text(f"'{one.arm}' against '{one.rival}': {one.outcome}.") for one in report.break_even
    ]
    yield Section("At which sizes it pays", (*lines, table))


def _where_faster(arm: ArmCost) -> str:
    """Say at which sizes an arm saves time, and how much of traffic that is."""
    sure = [one for one in arm.by_size if one.gain is not None and one.gain.low > 0]
    slower = [one for one in arm.by_size if one.gain is not None and one.gain.high < 0]
    share, lost = (sum(one.share for one in found) for found in (sure, slower))
    text = f"'{arm.name}' is faster for {100 * share:.3g} % of requests, slower for"
    text += f" {100 * lost:.3g} %"
    if slower:
        text += f" ({'; '.join(sizes_text(one.sizes) for one in slower)})"
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
    for one in report.predicted:
        shares = [end.share for end in (one.sizes[0], one.sizes[-1])][: len(columns) - 3]
        row: list[Cell] = [one.path or "all layers", Share(one.active_share)]
        row.append(str(one.pays_from or "never"))
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
            one.arm,
            f"{one.dim} {', '.join(str(gain.size) for gain in one.gains)}",
            ", ".join(f"{100 * gain.gain:.1f} %" for gain in one.gains),
            one.outcome,
        ]
        for one in report.tuned
    ]
    columns: list[Column | str] = ["layer", "sizes", "time saved", Column("it is", width="words")]
    yield Table("Layers as they were timed", columns, rows, id="tuned")


def _fleets(report: CostReport) -> Iterator[Block]:
    columns = ["traffic", "arm", "#machines", f"#a month, {report.currency}", "figures"]
    rows: list[list[Cell]] = [
        [
            f"x{one.times}",
            one.arm,
            _ends(one.machines),
            _ends(one.per_month),
            _EXTRAPOLATED if one.extrapolated else "measured",
        ]
        for one in report.fleets
    ]
    about = Text(
        "Whole machines, each as busy as prices say. Measured was one, with one run at a time: that"
        " others are as fast, and that traffic spreads evenly, is a model on paper."
    )
    yield Section("Fleets", (about, Table("Whole machines", columns, rows, id="fleets")))


def _back(back: PaidBack) -> str:
    text = [months_text(one) for one in (back.months, back.low, back.high)]
    return f"{text[0]} ({text[1]} to {text[2]})"


def _ends(one: Estimate | None) -> str | None:
    if one is None:
        return None
    if one.low == one.high:
        return amount(one.value)
    return f"{amount(one.value)} ({amount(one.low)} to {amount(one.high)})"


def _percents(one: Estimate | None) -> str | None:
    if one is None:
        return None
    return f"{100 * one.value:.3g} % ({100 * one.low:.3g} to {100 * one.high:.3g})"
