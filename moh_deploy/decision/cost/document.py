"""The page of costs: the answer first, then arms and sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.decision.cost.estimate import Estimate
from moh_deploy.perf.choices_text import sizes_text
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
