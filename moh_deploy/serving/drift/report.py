"""What `profile` and `watch` say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from moh_deploy.errors import ValidationError
from moh_deploy.report.charts import HeatMap, HeatMaps, LoadRow
from moh_deploy.report.document import (
    Block,
    Cell,
    CiCase,
    CiSuite,
    Column,
    Document,
    Drawn,
    Fact,
    Section,
    Share,
    Status,
    Table,
    Text,
    Verdict,
)
from moh_deploy.report.formats import PAGE
from moh_deploy.report.json import HIDDEN, in_json
from moh_deploy.report.numbers import count, figure, share
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.serving.drift.distances import Statistic
from moh_deploy.serving.drift.judge import LayerVerdict, WindowVerdict
from moh_deploy.serving.drift.reference import LayerProfile, RoutingReference

_MOST_REASONS = 10
_MOST_WINDOWS = 40
_STATISTICS: tuple[Statistic, ...] = get_args(Statistic)


def one_in(rate: float) -> str:
    """Return `1 in 1000 windows`."""
    return f"1 in {1 / rate:.0f} windows"


@dataclass(frozen=True)
class ProfileReport(Report):
    """A reference was made.

    Attributes:
        package: Of which package.
        output: Where it was written.
        reference: It.
        kernels: What ran the package; None where the requests were recorded elsewhere.
    """

    package: Path
    output: Path
    reference: RoutingReference
    kernels: KernelUse | None

    def document(self) -> Document:
        """Return what it says."""
        reference = self.reference
        rows = [_profile_row(one) for one in reference.layers]
        columns = ("layer", "#heads", "#tokens", "#least used head", "#most used head", "#heads on")
        sizes = [
            (one.requests, *(figure(max(_largest(one.layers, name))) for name in _STATISTICS))
            for one in reference.limits
        ]
        names = ("#requests", *(f"#{name}" for name in _STATISTICS))
        findings = (
            f"{count(reference.requests, 'request')}, written to {self.output}.",
            f"Unchanged traffic gives a false alarm in at most {one_in(reference.false_alarms)}, in"
            f" {reference.confidence:.0%} of references of this size, whatever the number of"
            " layers.",
        )
        tables = (
            Table("routing by layer; of the heads that are not shared", columns, rows),
            Table("largest limit of all layers, by the size of a window", names, sizes),
        )
        return Document("profile", tables, findings=findings)


@dataclass(frozen=True)
class WatchReport(Report):
    """Live routing, compared with the reference.

    Attributes:
        source: The dump or the address of metrics.
        windows: Each window, in the order of time.
        reference: The reference.
    """

    source: str
    windows: tuple[WindowVerdict, ...]
    reference: RoutingReference = field(metadata=HIDDEN)

    @property
    def kernels(self) -> None:
        """Nothing was run."""
        return

    @property
    @in_json()
    def false_alarms(self) -> float:
        """The share of windows of unchanged traffic that may alarm."""
        return self.reference.false_alarms

    @property
    @in_json()
    def reasons(self) -> tuple[str, ...]:
        """Every alarm of every window; that there was no window is one."""
        if not self.windows:
            fewest = self.reference.limits[0].requests
            return (f"no data: there is no window of {fewest} requests.",)
        return tuple(
            f"window {number}: {alarm}"
            for number, window in enumerate(self.windows, 1)
            for alarm in window.alarms
        )

    @property
    @in_json()
    def alarms(self) -> bool:
        return bool(self.reasons)

    @property
    def _has_drifted(self) -> bool:
        """A window that was judged alarms: it is not for want of data alone."""
        return any(one.alarms for one in self.windows if one.no_data is None)

    @property
    def failure(self) -> ValidationError | None:
        """The error that says that routing is not as it was."""
        if not self.alarms:
            return None
        first, *others = self.reasons
        more = f" ({len(others)} more)" if others else ""
        drifted = self._has_drifted
        said = "routing is not as in the reference" if drifted else "routing could not be judged"
        return ValidationError(f"{said}: {first}{more}")

    def document(self) -> Document:
        """Return what it says."""
        judged = [one for one in self.windows if one.no_data is None]
        lines = tuple(self._lines(judged))
        word = "DRIFTED" if self._has_drifted else "NO DATA" if self.alarms else "UNCHANGED"
        verdict = Verdict(
            word,
            not self.alarms,
            lines[0],
            lines,
            reasons=self.reasons,
            most_reasons=_MOST_REASONS,
        )
        requests = sum(one.requests for one in self.windows)
        alarmed = sum(bool(one.alarms) for one in self.windows)
        facts = (
            Fact("windows", str(len(self.windows)), f"{alarmed} alarmed"),
            Fact("requests read", str(requests)),
            Fact("reference", str(self.reference.requests), "requests"),
        )
        blocks: list[Block] = [_window_table(self.windows)] if self.windows else []
        if judged:
            blocks.append(_layer_table(judged))
        moved = _moved_heads(judged)
        if moved:
            columns = ("window", "layer", "#head", "live", "reference", "#limit", "what")
            blocks.append(Table("heads that moved", columns, moved))
        if any(layer.heads for window in judged for layer in window.layers):
            blocks += [_now(judged[-1], len(self.windows)), _over_time(judged, self.reference)]
        elif judged:
            blocks.append(Text(_NO_HEADS))
        return Document("watch", tuple(blocks), verdict, facts, suites=(self._suite(),))

    def _lines(self, judged: Sequence[WindowVerdict]) -> Iterator[str]:
        alarmed = sum(bool(one.alarms) for one in self.windows)
        yield f"{alarmed} of {count(len(self.windows), 'window')} alarmed"
        rate, windows = self.reference.false_alarms, len(judged)
        some = 1 - (1 - rate) ** windows
        yield (
            f"false alarms: {one_in(rate)} of unchanged traffic; one or more in"
            f" {count(windows, 'window')}: {share(some)}"
        )
        if any(one.requests > (one.limits_of or one.requests) for one in judged):
            yield (
                "windows are judged by the limits of the next smaller size that was calibrated:"
                " false alarms are rarer than that"
            )

    def _suite(self) -> CiSuite:
        said = "routing is as in the reference" if not self.alarms else self.reasons[0]
        verdict = CiCase("watch", "verdict", "failure" if self.alarms else "passed", said)
        cases = [
            CiCase(
                "window",
                f"window {number}",
                "failure" if one.alarms else "passed",
                "; ".join(one.alarms) or f"{one.requests} requests",
            )
            for number, one in enumerate(self.windows, 1)
        ]
        return CiSuite((verdict, *cases), facts=(("source", self.source),))


_NO_HEADS = (
    "Heads are not counted one by one there (--per-head counts them): choices and gate mass of"
    " heads were not compared, and no head is named."
)


def _profile_row(profile: LayerProfile) -> tuple[Cell, ...]:
    first = profile.layer.num_shared_heads or 0
    tokens = profile.tokens or 1.0
    routed = [on / tokens for on in profile.on[first:]] or [1.0]
    on = sum(profile.on) / tokens
    heads, path = profile.layer.num_heads, profile.layer.path
    return path, heads, round(profile.tokens), Share(min(routed)), Share(max(routed)), figure(on)


def _largest(layers: Sequence[object], name: Statistic) -> list[float]:
    values = [getattr(one, "heads" if name == "head" else name) for one in layers]
    flat = [each for one in values for each in (one if isinstance(one, tuple) else (one,))]
    return [one for one in flat if one is not None] or [0.0]


def _window_table(windows: Sequence[WindowVerdict]) -> Table:
    def row(number: int, one: WindowVerdict) -> tuple[Cell, ...]:
        ratio = None
        if one.ratio is not None:
            words = f"{one.ratio:.3g} of the limit"
            bad = one.ratio > 1
            ratio = Drawn(words, one.ratio, limit=1.0, bar_from=0.0, has_dot=False, is_bad=bad)
        said = "no data" if one.no_data else "alarm" if one.alarms else "as before"
        status = Status(said, not one.alarms)
        return number, _clock(one.since), _clock(one.until), one.requests, one.ratio, ratio, status

    columns = (
        "#window",
        "from",
        "to",
        "#requests",
        Column("#largest distance by its limit"),
        Column("drift", PAGE),
        "answer",
    )
    rows = [row(number, one) for number, one in enumerate(windows, 1)]
    return Table("windows", columns, rows, "windows", axis="numbers", axis_holds=(0.0, 1.0))


def _layer_table(windows: Sequence[WindowVerdict]) -> Table:
    def row(layers: Sequence[LayerVerdict]) -> tuple[Cell, ...]:
        worst: dict[str, float] = {}
        for layer in layers:
            for one in layer.drifts:
                worst[one.statistic] = max(worst.get(one.statistic, 0.0), one.ratio)
        return layers[0].path, *(worst.get(name) for name in _STATISTICS)

    columns = ("layer", *(f"#{name}" for name in _STATISTICS))
    rows = [row(layers) for layers in zip(*(one.layers for one in windows), strict=True)]
    title = "largest distance by its limit, over all windows; above 1 it is no chance"
    return Table(title, columns, rows)


def _moved_heads(windows: Sequence[WindowVerdict]) -> list[tuple[Cell, ...]]:
    found = [
        (number, layer, head)
        for number, one in enumerate(windows, 1)
        for layer in one.layers
        for head in layer.heads
        if head.has_moved
    ]
    # Those that moved most; JSON has all.
    found.sort(key=lambda one: -abs(one[2].live - one[2].reference))
    return [
        (
            str(number),
            layer.path,
            head.head,
            Share(head.live),
            Share(head.reference),
            head.limit,
            "dead" if head.is_dead else "always open" if head.is_always_open else "moved",
        )
        for number, layer, head in found[:_MOST_WINDOWS]
    ]


def _now(window: WindowVerdict, number: int) -> Section:
    rows = [row for layer in window.layers for row in _beside(layer)]
    about = Text(
        f"For how many tokens of window {number} each head is on, in percent, and below it in the"
        " reference. Heads that moved farther than chance explains are framed, with both numbers."
    )
    heat = HeatMap("share of tokens, in percent", "layer", tuple(rows), "loads-now")
    return Section("Load by layer and head", (about, HeatMaps((heat,))), shown=PAGE)


def _beside(layer: LayerVerdict) -> tuple[LoadRow, LoadRow]:
    return _row(layer.path, layer, "live"), _reference_row(layer)


def _reference_row(layer: LayerVerdict) -> LoadRow:
    then = tuple(round(one.reference * layer.tokens) for one in layer.heads)
    return LoadRow("", layer.tokens, then, then, layer.num_shared_heads, "reference")


def _row(name: str, layer: LayerVerdict, note: str) -> LoadRow:
    tokens = layer.tokens
    live = tuple(round(one.live * tokens) for one in layer.heads)
    # Both numbers are shown where they differ: of what chance explains the live one alone.
    then = tuple(
        round((one.reference if one.has_moved else one.live) * tokens) for one in layer.heads
    )
    return LoadRow(name, tokens, live, then, layer.num_shared_heads, note)


def _over_time(windows: Sequence[WindowVerdict], reference: RoutingReference) -> Section:
    shown = windows[-_MOST_WINDOWS:]
    maps = []
    for number, profile in enumerate(reference.layers):
        layers = [one.layers[number] for one in shown]
        rows = [
            _row(_clock(one.since), layer, count(one.requests, "request"))
            for one, layer in zip(shown, layers, strict=True)
        ]
        rows.insert(0, replace(_reference_row(layers[0]), name="reference", note=""))
        left_out = len(windows) - len(shown)
        maps.append(
            HeatMap(profile.layer.path, "window", tuple(rows), f"over-time-{number}", left_out)
        )
    about = Text("The same window by window, each layer by itself, the reference first.")
    return Section("Load over time", (about, HeatMaps(tuple(maps))), shown=PAGE)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
