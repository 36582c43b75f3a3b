"""The report of a comparison: the decision, and all that it rests on."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.decision.decide import WouldDo
from moh_deploy.decision.measured import AlternativeReport, DataFile, LatencyFigure
from moh_deploy.decision.size_break_even import SizeBreakEven
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.report import document as page
from moh_deploy.report.document import NOT_TERMINAL, TradeOffChart, TradeOffPoint
from moh_deploy.report.report import (
    HIDDEN,
    Report,
    count,
    figure,
    in_json,
    json_members,
    shown_verdict,
    to_json,
)
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.validate.accuracy.metric_parity import shown, shown_gap


@dataclass(frozen=True)
class DecisionReport(Report):
    """The decision that a plan asked for.

    Attributes:
        plan_digest: The sha256 of what the plan says, without its `seconds`.
        plan: The plan itself, as JSON with all defaults.
        reference: The alternative that all others are compared with.
        look: Of this run.
        looks: How many the plan allows.
        confidence: No win and no loss is wrong with this confidence.
        level: What this look may spend of being wrong, in wins and in losses each.
        quantile: Of the times that are compared; None if time does not count.
        arms: The reference first.
        would_do: Alternatives without routers that do as well as all with them.
        break_even: At which sizes alternatives begin or stop to be faster than others; empty where
            no dimension was timed at two sizes.
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
    arms: tuple[AlternativeReport, ...]
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
    def headline(self) -> tuple[str, str]:
        """The answer in a word or two, and the sentence behind it."""
        served = [alternative for alternative in self.arms if not alternative.is_bound]
        wins, untold = (
            [f"'{alternative.name}'" for alternative in served if alternative.verdict == verdict]
            for verdict in ("win", "cannot tell")
        )
        if self.would_do:
            name, routed = self.would_do[0].name, [f"'{name}'" for name in self.would_do[0].beside]
            # The plan's own word for it, where that is what it is.
            is_dense = {alternative.name: alternative.dense for alternative in self.arms}[name]
            are = "is" if len(routed) == 1 else "are"
            return "DENSE WOULD DO" if is_dense else "A SIMPLER ALTERNATIVE WOULD DO", (
                f"'{name}' chooses no heads, and loses no more than the plan allows against"
                f" {' and '.join(routed)}, which {are} not as much faster as it asks for."
            )
        if wins:
            better = "is" if len(wins) == 1 else "are"
            return "WIN", f"{', '.join(wins)} {better} worth it against '{self.reference}'."
        if untold:
            names = ", ".join(untold)
            return "INCONCLUSIVE", f"these data cannot tell whether {names} would be worth it."
        return "KEEP THE REFERENCE", f"no alternative is worth it against '{self.reference}'."

    def document(self) -> page.Document:
        """Return one page of it."""
        word, sentence = self.headline
        held, lost, untold = (
            tuple(
                _sentence(alternative)
                for alternative in self.arms
                if alternative.verdict == verdict
            )
            for verdict in ("win", "loss", "cannot tell")
        )
        # Of a page it is the title.
        goal = page.Text(f"The goal: {self.goal}", shown=page.TEXT)
        hashes = [("plan", self.plan_digest), *((file.path, file.sha256) for file in self.data)]
        fixed = "sha256 of the plan, and of samples and labels"
        blocks: list[page.Block] = [
            page.Section("All alternatives", (goal, *_chart(self), _alternatives(self))),
            _promises(self),
            *_break_even(self),
            *_details(self),
            page.Section(
                "What was fixed before", (page.Table(fixed, ["what", "sha256"], hashes, "data"),)
            ),
        ]
        is_good = True if word == "WIN" else None
        return page.Document(
            "compare",
            tuple(blocks),
            page.Verdict(word, is_good, sentence, (sentence,), held, lost, untold),
            facts=tuple(_facts(self)),
            remarks=tuple(_remarks(self)),
            title=self.goal,
        )


def _sentence(alternative: AlternativeReport) -> str:
    """Return what decided an alternative."""
    came = "; ".join(promise.came for promise in alternative.promises)
    if alternative.is_bound:
        return f"{alternative.name}: a bound, which cannot be served. {came}."
    if alternative.verdict == "win":
        return f"{alternative.name}: win. {came}."
    if alternative.verdict == "loss":
        broken = min(alternative.promises, key=lambda promise: promise.p_broken)
        return f"{alternative.name}: loss. Promised: {broken.text}; came: {broken.came}."
    return (
        ": ".join(
            [alternative.name, "inconclusive", *filter(None, ["; ".join(alternative.would_tell)])]
        )
        + "."
    )


def _chart(report: DecisionReport) -> Iterator[page.Block]:
    """Yield quality against time at the first of the sizes, where both were measured."""
    points = [
        TradeOffPoint(
            name=alternative.name,
            summary=f"{shown(quality.metric, quality.value)}, {_p50_text(time)} ms,"
            f" {'bound' if alternative.is_bound else shown_verdict(alternative.verdict)}",
            x=time.p50_ms,
            y=quality.value,
            x_interval=_both(time.p50_low_ms, time.p50_high_ms),
            y_interval=_both(quality.low, quality.high),
        )
        for alternative in report.arms
        for quality, time in zip(alternative.quality[:1], alternative.latency[:1], strict=False)
        if math.isfinite(quality.value)
    ]
    if not points:
        return
    metric, first = report.arms[0].quality[0], report.arms[0].latency[0]
    # The first promise of each kind: of the first metric, at the first of the sizes.
    promised = {
        promise.kind: promise.limit
        for alternative in report.arms
        for promise in reversed(alternative.promises)
    }
    lower_is_better, loss = metric.better == "lower", promised["quality"]
    worst = metric.value + (loss if lower_is_better else -loss)
    yield TradeOffChart(
        title=f"{metric.metric} and time of all alternatives, {sizes_text(first.sizes)}",
        x_name="p50 in ms",
        y_name=metric.metric,
        points=tuple(points),
        # Promised is a gain over the quantile that is compared; of the median it is drawn.
        x_limit=first.p50_ms * (1 - promised["latency"]) if report.quantile == 0.5 else None,
        y_limit=worst if math.isfinite(worst) else None,
        y_is_share=metric.metric.startswith("top-"),
        lower_is_better=lower_is_better,
        x_unit="ms",
    )


def _both(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _alternatives(report: DecisionReport) -> page.Table:
    """Return the table of all alternatives, one line each."""
    reference = report.arms[0]
    has_times = bool(reference.latency)
    kind = page.Column("what it is", width="words")
    columns: list[page.Column | str] = ["alternative", "verdict", kind]
    columns += [f"#{score.metric}" for score in reference.quality]
    columns += ["#p50 ms", "#CPU ms"] if has_times else []
    columns += ["#memory MiB", "#skipped", "#routers"]
    # Of one runtime the remarks say which; of several each alternative has to.
    several = len({alternative.runtime for alternative in report.arms}) > 1
    good = {"win": True, "loss": False}
    rows: list[list[page.Cell]] = []
    for alternative in report.arms:
        first = alternative.latency[0] if alternative.latency else None
        word = "bound" if alternative.is_bound else shown_verdict(alternative.verdict)
        row: list[page.Cell] = [alternative.name, page.Status(word, good.get(word))]
        row.append(f"{alternative.kind}; {alternative.runtime}" if several else alternative.kind)
        for score in alternative.quality:
            value, *ends = (
                None if x is None else shown(score.metric, x)
                for x in (score.value, score.low, score.high)
            )
            row.append(value if None in ends else f"{value} ({ends[0]} to {ends[1]})")
        if first is not None:
            row += [_p50_text(first), figure(first.cpu_ms)]
        row.append(None if alternative.memory_mib is None else f"{alternative.memory_mib:.0f}")
        row.append(page.Share(alternative.skipped_share))
        row.append(page.Share(None if first is None else first.router_share))
        rows.append(row)
    where = f", {sizes_text(reference.latency[0].sizes)}" if has_times else ""
    return page.Table(f"alternatives{where}", columns, rows, "alternatives")


def _p50_text(latency: LatencyFigure) -> str:
    if latency.p50_low_ms is None or latency.p50_high_ms is None:
        return f"{latency.p50_ms:.3g}"
    return f"{latency.p50_ms:.3g} ({latency.p50_low_ms:.3g} to {latency.p50_high_ms:.3g})"


def _promises(report: DecisionReport) -> page.Section:
    rows: list[list[page.Cell]] = []
    probable: list[list[page.Cell]] = []
    for alternative in report.arms:
        for promise in alternative.promises:
            # By itself: where the whole interval says so.
            kept = page.Status("not told", None)
            if promise.p_kept <= (1 - report.confidence) / 2:
                kept = page.Status("kept", True)
            elif promise.p_broken <= (1 - report.confidence) / 2:
                kept = page.Status("broken", False)
            said = alternative.name, promise.text, promise.came
            rows.append([*said, kept])
            probable.append([alternative.name, promise.text, promise.p_kept, promise.p_broken])
    columns: list[page.Column | str] = [
        "alternative",
        page.Column("promised", width="words"),
        page.Column("came", width="words"),
        "by itself",
    ]
    about = (
        "What the plan promised before the data, and what came, with intervals of"
        f" {100 * report.confidence:g} %. A promise by itself is shown where the whole interval"
        " says so; a verdict has to hold for all alternatives and looks together: that asks more."
    )
    table = page.Table("promised and measured", columns, rows, "promises")
    names = ("alternative", page.Column("promised", width="words"), "#p, kept", "#p, broken")
    p_values = page.Table("p values", names, probable, "p-values", NOT_TERMINAL)
    blocks = (page.Text(about, shown=NOT_TERMINAL), table, page.Folded("p values", (p_values,)))
    return page.Section("Promised and measured", blocks)


def _break_even(report: DecisionReport) -> Iterator[page.Section]:
    """Yield the sizes at which alternatives break even, or why they are not known."""
    title = "From which size on it pays"
    if not report.break_even:
        if any(alternative.latency for alternative in report.arms):
            why = "Not known: that takes two sizes of a dimension, and rounds enough at each."
            yield page.Section(title, (page.Text(why),))
        return
    about = (
        "Time alone. Between timed sizes the ratio of times is interpolated, each interval is of"
        f" {100 * report.confidence:g} % by itself; beyond the smallest and the largest nothing is"
        " known."
    )
    rows: list[list[page.Cell]] = []
    for even in report.break_even:
        sizes = f"{even.dim} {', '.join(str(gain.size) for gain in even.gains)}"
        gains = ", ".join(
            f"{100 * gain.gain:.1f} % ({100 * gain.low:.1f} to {100 * gain.high:.1f})"
            for gain in even.gains
        )
        where = f"{sizes}; {sizes_text(even.others)}" if even.others else sizes
        rows.append([even.arm, even.rival, where, gains, even.outcome])
    saved, it_is = (page.Column(name, width="words") for name in ("time saved", "it is"))
    table = page.Table(title, ["alternative", "against", "sizes", saved, it_is], rows, "break-even")
    yield page.Section(title, (page.Text(about, shown=NOT_TERMINAL), table))


def _details(report: DecisionReport) -> Iterator[page.Block]:
    """Yield times at all sizes, bias of routing, edge cases, and what was not measured."""
    times: list[Sequence[page.Cell]] = []
    routing: list[Sequence[page.Cell]] = []
    cases: list[Sequence[page.Cell]] = []
    missing: list[Sequence[page.Cell]] = []
    for alternative in report.arms:
        for time in alternative.latency:
            what = alternative.name, sizes_text(time.sizes), time.inputs, time.rounds
            ms = _p50_text(time), f"{time.quantile_ms:.3g}", f"{time.throughput_per_s:.4g}"
            times.append([*what, *ms, figure(time.cpu_ms), page.Share(time.router_share)])
        for layer in alternative.routing:
            counts = layer.heads, layer.tokens, page.Share(layer.open_share), layer.dead
            bias = layer.always_open, figure(layer.entropy)
            routing.append([alternative.name, layer.path, *counts, *bias])
        if (found := alternative.edge_cases) is not None:
            failures = "; ".join(found.failures) or None
            cases.append([alternative.name, found.passed, found.failed, failures])
        missing += [(alternative.name, name, why) for name, why in alternative.not_measured.items()]
    columns = ["alternative", "sizes", "inputs", "#rounds", "#p50 ms", "#quantile ms", "#samples/s"]
    columns += ["#CPU ms", "#routers"]
    title = "Times at all sizes"
    yield page.Folded(title, (page.Table(title.lower(), columns, times, "times"),))
    columns = [
        "alternative",
        "layer",
        "#heads",
        "#tokens",
        "#open",
        "#dead",
        "#always open",
        "#entropy",
    ]
    if routing:
        table = page.Table("bias of routing", columns, routing, "routing")
        yield page.Folded("Bias of routing", (table,))
    what_failed, why_not = (page.Column(name, width="long") for name in ("what failed", "why"))
    if cases:
        names = [page.Column(name) for name in ("alternative", "#passed", "#failed")]
        yield page.Table("edge cases", [*names, what_failed], cases, "edge-cases")
    if missing:
        table = page.Table(
            "not measured", ["alternative", "what", why_not], missing, "not-measured"
        )
        yield page.Folded("Not measured", (table,))


def _facts(report: DecisionReport) -> Iterator[page.Fact]:
    judged = [
        alternative
        for alternative in report.arms
        if alternative.verdict != "reference" and not alternative.is_bound
    ]
    wins = [alternative for alternative in judged if alternative.verdict == "win"]
    if not wins:
        for verdict in ("win", "loss", "cannot tell"):
            number = sum(alternative.verdict == verdict for alternative in judged)
            yield page.Fact(
                shown_verdict(verdict), str(number), f"of {count(len(judged), 'alternative')}"
            )
        return
    # Of several, the one that gains most.
    gains = {
        alternative.name: next(
            (it.estimate for it in alternative.promises if it.kind == "latency"), 0.0
        )
        for alternative in wins
    }
    best = max(wins, key=lambda alternative: gains[alternative.name])
    yield page.Fact("alternative", best.name, f"against {report.arms[0].name}")
    for index, promise in enumerate(best.promises[:3]):
        what, value = "gain", f"{100 * promise.estimate:.1f} %"
        if promise.kind == "quality":
            # Promises of quality come first, in the order of what was scored.
            what, value = "loss", shown_gap(best.quality[index].metric, promise.estimate)
        yield page.Fact(what, value, f"promised: {promise.text}")


def _remarks(report: DecisionReport) -> Iterator[str]:
    yield (
        f"look {report.look} of {report.looks}; this one may be wrong in {100 * report.level:.3g} %"
        " of cases in wins, and as often in losses, over all alternatives (Holm and spending)."
    )
    rounds = [latency.rounds for alternative in report.arms for latency in alternative.latency]
    if rounds:
        yield (
            f"All alternatives ran in turns, {count(min(rounds), 'round')} at least; times are"
            " compared by the means of blocks of rounds, since neighbours are alike."
        )
    if any(alternative.quality for alternative in report.arms):
        samples = report.arms[0].quality[0].samples
        yield f"Quality is of {count(samples, 'sample')}, compared one by one (paired bootstrap)."
    (runtime, *others) = dict.fromkeys(alternative.runtime for alternative in report.arms)
    yield report.machine if others else f"{report.machine}, {runtime}"
    yield from report.notes
