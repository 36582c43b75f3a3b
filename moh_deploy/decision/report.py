"""The report of a comparison: the decision, and all that it rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.decision.arm_report import ArmReport, DataFile, LatencyFigure
from moh_deploy.decision.decide import WouldDo
from moh_deploy.decision.promise import Promise
from moh_deploy.decision.size_break_even import SizeBreakEven
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.report.document import (
    NOT_TERMINAL,
    Block,
    Cell,
    Column,
    Document,
    Fact,
    Folded,
    Section,
    Share,
    Status,
    Table,
    Text,
    TradeOffChart,
    TradeOffPoint,
    Verdict,
)
from moh_deploy.report.json import HIDDEN, in_json, json_members, to_json
from moh_deploy.report.numbers import count, figure
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.validate.accuracy.metric_parity import shown, shown_gap


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


_GOOD = {"win": True, "loss": False, "cannot tell": None, "reference": None}


def document_of(report: DecisionReport) -> Document:
    """Return what the report says."""
    goal = Text(f"The goal: {report.goal}")
    blocks: list[Block] = [Section("All arms", (goal, *_chart(report), *_arms(report)))]
    blocks += _promises(report)
    blocks += _break_even(report)
    blocks += [_times(report), *_routing(report), *_edge_cases(report), *_missing(report)]
    blocks.append(_plan(report))
    return Document(
        "compare",
        tuple(blocks),
        _verdict(report),
        facts=tuple(_facts(report)),
        remarks=tuple(_remarks(report)),
    )


def _verdict(report: DecisionReport) -> Verdict:
    word, sentence = report.headline
    judged = [arm for arm in report.arms if arm.verdict != "reference"]
    held = tuple(_sentence(arm_report) for arm_report in judged if arm_report.verdict == "win")
    lost = tuple(_sentence(arm_report) for arm_report in judged if arm_report.verdict == "loss")
    open_ones = [
        _sentence(arm_report) for arm_report in judged if arm_report.verdict == "cannot tell"
    ]
    is_good = True if word == "WIN" else None
    return Verdict(word, is_good, sentence, (sentence,), held, lost, tuple(open_ones))


def _sentence(arm: ArmReport) -> str:
    """Return what decided an arm."""
    if arm.is_bound:
        return f"{arm.name}: a bound, which cannot be served. {_came(arm.promises)}."
    if arm.verdict == "win":
        return f"{arm.name}: win. {_came(arm.promises)}."
    if arm.verdict == "loss":
        broken = min(arm.promises, key=lambda promise: promise.p_broken)
        return f"{arm.name}: loss. Promised: {broken.text}; came: {broken.came}."
    more = "; ".join(arm.would_tell)
    return f"{arm.name}: cannot tell{f': {more}' if more else ''}."


def _came(promises: tuple[Promise, ...]) -> str:
    return "; ".join(promise.came for promise in promises)


def _chart(report: DecisionReport) -> Iterator[Block]:
    """Yield quality against time at the first of the sizes, where both were measured."""
    points = tuple(_points(report))
    if not points:
        return
    reference = report.arms[0]
    metric = reference.quality[0]
    promised = {
        promise.kind: promise.limit for arm in report.arms for promise in reversed(arm.promises)
    }
    first, loss = reference.latency[0], promised["quality"]
    worst = metric.value + (loss if metric.better == "lower" else -loss)
    yield TradeOffChart(
        title=f"{metric.metric} and time of all arms, {sizes_text(first.sizes)}",
        x_name="p50 in ms",
        y_name=metric.metric,
        points=points,
        # Promised is a gain over the quantile that is compared; of the median it is drawn.
        x_limit=first.p50_ms * (1 - promised["latency"]) if report.compares_median else None,
        y_limit=worst if math.isfinite(worst) else None,
        y_is_share=metric.metric.startswith("top-"),
        lower_is_better=metric.better == "lower",
    )


def _points(report: DecisionReport) -> Iterator[TradeOffPoint]:
    for arm in report.arms:
        if not arm.quality or not arm.latency or not math.isfinite(arm.quality[0].value):
            continue
        quality, time = arm.quality[0], arm.latency[0]
        verdict = "bound" if arm.is_bound else arm.verdict
        yield TradeOffPoint(
            name=arm.name,
            summary=f"{shown(quality.metric, quality.value)}, {_p50_text(time)} ms, {verdict}",
            x=time.p50_ms,
            y=quality.value,
            x_interval=_both(time.p50_low_ms, time.p50_high_ms),
            y_interval=_both(quality.low, quality.high),
        )


def _both(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _arms(report: DecisionReport) -> Iterator[Block]:
    """Yield the table of all arms, one line each."""
    metrics = [score.metric for score in report.arms[0].quality]
    has_times = bool(report.arms[0].latency)
    columns: list[Column | str] = ["arm", "verdict", Column("what it is", width="words")]
    columns += [f"#{metric}" for metric in metrics]
    if has_times:
        columns += ["#p50 ms", "#samples/s", "#CPU ms"]
    columns += ["#memory MiB", "#skipped", "#routers"]
    # Of one runtime the remarks say which; of several each arm has to.
    several = len({arm.runtime for arm in report.arms}) > 1
    rows = [tuple(_arm_row(arm, columns, says_runtime=several)) for arm in report.arms]
    where = ""
    if has_times:
        where = f", {sizes_text(report.arms[0].latency[0].sizes)}"
    yield Table(f"arms{where}", columns, rows, "arms")


def _arm_row(arm: ArmReport, columns: list[Column | str], *, says_runtime: bool) -> Iterator[Cell]:
    yield arm.name
    yield Status("bound", None) if arm.is_bound else Status(arm.verdict, _GOOD[arm.verdict])
    yield f"{arm.kind}; {arm.runtime}" if says_runtime else arm.kind
    for score in arm.quality:
        interval = (
            ""
            if score.low is None or score.high is None
            else (f" ({shown(score.metric, score.low)} to {shown(score.metric, score.high)})")
        )
        yield f"{shown(score.metric, score.value)}{interval}"
    first = arm.latency[0] if arm.latency else None
    if first is not None:
        yield _p50_text(first)
        yield f"{first.throughput_per_s:.4g}"
        yield figure(first.cpu_ms)
    yield None if arm.memory_mib is None else f"{arm.memory_mib:.0f}"
    yield Share(arm.skipped_share)
    yield Share(None if first is None else first.router_share)


def _p50_text(latency: LatencyFigure) -> str:
    if latency.p50_low_ms is None or latency.p50_high_ms is None:
        return f"{latency.p50_ms:.3g}"
    return f"{latency.p50_ms:.3g} ({latency.p50_low_ms:.3g} to {latency.p50_high_ms:.3g})"


def _promises(report: DecisionReport) -> Iterator[Block]:
    rows = [
        (
            arm.name,
            promise.text,
            promise.came,
            _kept(promise, report),
            promise.p_kept,
            promise.p_broken,
        )
        for arm in report.arms
        for promise in arm.promises
    ]
    columns: list[Column | str] = [
        "arm",
        Column("promised", width="words"),
        Column("came", width="words"),
        "by itself",
        Column("#p, kept", NOT_TERMINAL),
        Column("#p, broken", NOT_TERMINAL),
    ]
    about = (
        "What the plan promised before the data, and what came, with intervals of"
        f" {100 * report.confidence:g} %. A promise by itself is shown where the whole interval"
        " says so; a verdict has to hold for all arms and looks together, which asks for more."
    )
    yield Section(
        "Promised and measured",
        (
            Text(about, shown=NOT_TERMINAL),
            Table("promised and measured", columns, rows, "promises"),
        ),
    )


def _kept(promise: Promise, report: DecisionReport) -> Status:
    tail = (1 - report.confidence) / 2
    if promise.p_kept <= tail:
        return Status("kept", True)
    return Status("broken", False) if promise.p_broken <= tail else Status("not told", None)


def _break_even(report: DecisionReport) -> Iterator[Block]:
    """Yield where arms break even in size; where one size was timed, why that is not known."""
    title, found = "From which size on it pays", report.break_even
    if not found:
        if any(arm.latency for arm in report.arms):
            why = "Not known: that takes two sizes of a dimension, and rounds enough at each."
            yield Section(title, (Text(why),))
        return
    about = (
        "Time alone. Between timed sizes the ratio of times is interpolated, each interval is of"
        f" {100 * report.confidence:g} % by itself; beyond the smallest and the largest nothing is"
        " known."
    )
    rows = [
        (even.arm, even.rival, _line_text(even), _gains_text(even), even.outcome) for even in found
    ]
    columns: list[Column | str] = [
        "arm",
        "against",
        "sizes",
        Column("time saved", width="words"),
        Column("it is", width="words"),
    ]
    yield Section(
        title, (Text(about, shown=NOT_TERMINAL), Table(title, columns, rows, "break-even"))
    )


def _line_text(even: SizeBreakEven) -> str:
    sizes = f"{even.dim} {', '.join(str(gain.size) for gain in even.gains)}"
    return f"{sizes}; {sizes_text(even.others)}" if even.others else sizes


def _gains_text(even: SizeBreakEven) -> str:
    return ", ".join(
        f"{100 * gain.gain:.1f} % ({100 * gain.low:.1f} to {100 * gain.high:.1f})"
        for gain in even.gains
    )


def _times(report: DecisionReport) -> Block:
    rows = [
        (
            arm.name,
            sizes_text(latency.sizes),
            latency.inputs,
            latency.rounds,
            _p50_text(latency),
            f"{latency.quantile_ms:.3g}",
            f"{latency.throughput_per_s:.4g}",
            figure(latency.cpu_ms),
            Share(latency.router_share),
        )
        for arm in report.arms
        for latency in arm.latency
    ]
    columns = ["arm", "sizes", "inputs", "#rounds", "#p50 ms", "#quantile ms", "#samples/s"]
    columns += ["#CPU ms", "#routers"]
    return Folded("Times at all sizes", (Table("times at all sizes", columns, rows, "times"),))


def _routing(report: DecisionReport) -> Iterator[Block]:
    rows = [
        (
            arm.name,
            layer_routing.path,
            layer_routing.heads,
            layer_routing.tokens,
            Share(layer_routing.open_share),
            layer_routing.dead,
            layer_routing.always_open,
            figure(layer_routing.entropy),
        )
        for arm in report.arms
        for layer_routing in arm.routing
    ]
    columns = ["arm", "layer", "#heads", "#tokens", "#open", "#dead", "#always open", "#entropy"]
    if rows:
        yield Folded("Bias of routing", (Table("bias of routing", columns, rows, "routing"),))


def _edge_cases(report: DecisionReport) -> Iterator[Block]:
    rows = [
        (arm.name, found.passed, found.failed, "; ".join(found.failures) or None)
        for arm in report.arms
        if (found := arm.edge_cases) is not None
    ]
    columns: list[Column | str] = ["arm", "#passed", "#failed", Column("what failed", width="long")]
    if rows:
        yield Table("edge cases", columns, rows, "edge-cases")


def _missing(report: DecisionReport) -> Iterator[Block]:
    rows = [(arm.name, what, why) for arm in report.arms for what, why in arm.not_measured.items()]
    columns: list[Column | str] = ["arm", "what", Column("why", width="long")]
    if rows:
        yield Folded("Not measured", (Table("not measured", columns, rows, "not-measured"),))


def _plan(report: DecisionReport) -> Block:
    rows = [
        ("plan", report.plan_digest),
        *((data_file.path, data_file.sha256) for data_file in report.data),
    ]
    table = Table("sha256 of the plan, and of samples and labels", ["what", "sha256"], rows, "data")
    return Section("What was fixed before", (table,))


def _facts(report: DecisionReport) -> Iterator[Fact]:
    reference = report.arms[0]
    judged = [arm for arm in report.arms if arm.verdict != "reference" and not arm.is_bound]
    wins = [arm_report for arm_report in judged if arm_report.verdict == "win"]
    if not wins:
        for verdict in ("win", "loss", "cannot tell"):
            number = sum(1 for arm_report in judged if arm_report.verdict == verdict)
            yield Fact(verdict, str(number), f"of {count(len(judged), 'arm')}")
        return
    # Of several, the one that gains most.
    best = max(wins, key=_gain)
    yield Fact("arm", best.name, f"against {reference.name}")
    # Promises of quality come first, in the order of what was scored.
    metrics = [score.metric for score in best.quality]
    for index, promise in enumerate(best.promises[:3]):
        what = "loss" if promise.kind == "quality" else "gain"
        metric = metrics[index] if what == "loss" else ""
        value = (
            shown_gap(metric, promise.estimate)
            if what == "loss"
            else f"{100 * promise.estimate:.1f} %"
        )
        yield Fact(what, value, f"promised: {promise.text}")


def _gain(arm: ArmReport) -> float:
    return next((promise.estimate for promise in arm.promises if promise.kind == "latency"), 0.0)


def _remarks(report: DecisionReport) -> Iterator[str]:
    yield (
        f"look {report.look} of {report.looks}; this one may be wrong in {100 * report.level:.3g} %"
        " of cases in wins, and as often in losses, over all arms (Holm; looks by spending)."
    )
    rounds = [latency.rounds for arm in report.arms for latency in arm.latency]
    if rounds:
        yield (
            f"All arms ran in turns, {count(min(rounds), 'round')} at least; times are compared by"
            " the means of blocks of rounds, since neighbours are alike."
        )
    if any(arm.quality for arm in report.arms):
        samples = report.arms[0].quality[0].samples
        yield f"Quality is of {count(samples, 'sample')}, compared one by one (paired bootstrap)."
    (runtime, *others) = dict.fromkeys(arm.runtime for arm in report.arms)
    yield report.machine if others else f"{report.machine}, {runtime}"
    yield from report.notes
