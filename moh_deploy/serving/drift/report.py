"""The reports of `profile` and `watch`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from moh_deploy.errors import ValidationError
from moh_deploy.report import document as doc
from moh_deploy.report.report import HIDDEN, Report, count, figure, in_json, share
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.serving.drift.distances import Statistic
from moh_deploy.serving.drift.judge import LayerVerdict, WindowVerdict
from moh_deploy.serving.drift.reference import RoutingReference

_MOST_REASONS = 10
_MOST_WINDOWS = 40
_STATISTICS: tuple[Statistic, ...] = get_args(Statistic)  # the last is that of single heads


def _one_in(rate: float) -> str:
    return f"1 in {1 / rate:.0f} windows"


@dataclass(frozen=True)
class ProfileReport(Report):
    """A reference was made."""

    package: Path
    output: Path
    reference: RoutingReference
    # What ran the package; None where the requests were recorded elsewhere.
    kernels: KernelUse | None

    def document(self) -> doc.Document:
        """Return what it says."""
        reference = self.reference
        rows: list[tuple[doc.Cell, ...]] = []
        for profile in reference.layers:
            tokens, first = profile.tokens or 1.0, profile.layer.num_shared_heads or 0
            routed = [on / tokens for on in profile.on[first:]] or [1.0]
            of_layer = profile.layer.path, profile.layer.num_heads, round(profile.tokens)
            shares = doc.Share(min(routed)), doc.Share(max(routed))
            rows.append((*of_layer, *shares, figure(sum(profile.on) / tokens)))
        columns = ("layer", "#heads", "#tokens", "#least used head", "#most used head", "#heads on")
        names = ("#requests", *(f"#{name}" for name in _STATISTICS))
        sizes: list[tuple[doc.Cell, ...]] = []
        for window in reference.limits:
            head = max(limit for layer in window.layers for limit in layer.heads)
            largest = (
                max(getattr(layer, name) or 0.0 for layer in window.layers)
                for name in _STATISTICS[:-1]
            )
            sizes.append((window.requests, *map(figure, (*largest, head))))
        rate = _one_in(reference.false_alarms)
        findings = (
            f"{count(reference.requests, 'request')}, written to {self.output}.",
            f"Unchanged traffic gives a false alarm in at most {rate}, in"
            f" {reference.confidence:.0%} of references of this size, whatever the number of"
            " layers.",
        )
        tables = (
            doc.Table("routing by layer; of the heads that are not shared", columns, rows),
            doc.Table("largest limit of all layers, by the size of a window", names, sizes),
        )
        return doc.Document("profile", tables, findings=findings)


@dataclass(frozen=True)
class WatchReport(Report):
    """Live routing, compared with the reference."""

    source: str  # the dump or the address of metrics
    windows: tuple[WindowVerdict, ...]  # each window, in the order of time
    reference: RoutingReference = field(metadata=HIDDEN)

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
    def _judged(self) -> list[WindowVerdict]:
        return [window for window in self.windows if window.no_data is None]

    @property
    def _has_drifted(self) -> bool:
        return any(window.alarms for window in self._judged)

    @property
    def failure(self) -> ValidationError | None:
        """The error that says that routing is not as it was."""
        if not self.alarms:
            return None
        first, *others = self.reasons
        more = f" ({len(others)} more)" if others else ""
        drifted = self._has_drifted
        problem = "routing is not as in the reference" if drifted else "routing could not be judged"
        return ValidationError(f"{problem}: {first}{more}")

    def document(self) -> doc.Document:
        """Return what it says."""
        judged, rate = self._judged, self.false_alarms
        alarmed = sum(bool(window.alarms) for window in self.windows)
        some = share(1 - (1 - rate) ** len(judged))
        lines = [
            f"{alarmed} of {count(len(self.windows), 'window')} alarmed",
            f"false alarms: {_one_in(rate)} of unchanged traffic; one or more in"
            f" {count(len(judged), 'window')}: {some}",
        ]
        if any(window.requests > (window.limits_of or window.requests) for window in judged):
            lines.append(
                "windows are judged by the limits of the next smaller size that was calibrated:"
                " false alarms are rarer than that"
            )
        word = "DRIFTED" if self._has_drifted else "NO DATA" if self.alarms else "UNCHANGED"
        verdict = doc.Verdict(
            word,
            not self.alarms,
            lines[0],
            tuple(lines),
            reasons=self.reasons,
            most_reasons=_MOST_REASONS,
        )
        facts = (
            doc.Fact("windows", str(len(self.windows)), f"{alarmed} alarmed"),
            doc.Fact("requests read", str(sum(window.requests for window in self.windows))),
            doc.Fact("reference", str(self.reference.requests), "requests"),
        )
        blocks: list[doc.Block] = [_window_table(self.windows)] if self.windows else []
        if judged:
            blocks.append(_layer_table(judged))
        moved = _moved_heads(judged)
        if moved:
            columns = ("window", "layer", "#head", "live", "reference", "#limit", "what")
            blocks.append(doc.Table("heads that moved", columns, moved))
        if any(layer.heads for window in judged for layer in window.layers):
            blocks += [_now(judged[-1], len(self.windows)), _over_time(judged)]
        elif judged:
            blocks.append(
                doc.Text(
                    "Heads are not counted one by one there (--per-head counts them): choices and"
                    " gate mass of heads were not compared, and no head is named."
                )
            )
        return doc.Document("watch", tuple(blocks), verdict, facts, suites=(self._suite(),))

    def _suite(self) -> doc.CiSuite:
        def case(kind: str, name: str, reasons: Sequence[str], good: str) -> doc.CiCase:
            return doc.CiCase(
                kind, name, "failure" if reasons else "passed", "; ".join(reasons) or good
            )

        good = "routing is as in the reference"
        verdict = case("watch", "verdict", self.reasons[:1], good)
        cases = [
            case("window", f"window {number}", window.alarms, f"{window.requests} requests")
            for number, window in enumerate(self.windows, 1)
        ]
        return doc.CiSuite((verdict, *cases), facts=(("source", self.source),))


def _window_table(windows: Sequence[WindowVerdict]) -> doc.Table:
    rows: list[tuple[doc.Cell, ...]] = []
    for number, window in enumerate(windows, 1):
        ratio, drawn = window.ratio, None
        if ratio is not None:
            words, is_bad = f"{ratio:.3g} of the limit", ratio > 1
            drawn = doc.Drawn(words, ratio, limit=1.0, bar_from=0.0, has_dot=False, is_bad=is_bad)
        answer = "no data" if window.no_data else "alarm" if window.alarms else "as before"
        times = _clock(window.since), _clock(window.until)
        status = doc.Status(answer, not window.alarms)
        rows.append((number, *times, window.requests, ratio, drawn, status))
    columns = (
        *("#window", "from", "to", "#requests"),
        doc.Column("#largest distance by its limit"),
        doc.Column("drift", doc.PAGE),
        "answer",
    )
    return doc.Table("windows", columns, rows, "windows", axis="numbers", axis_holds=(0.0, 1.0))


def _layer_table(windows: Sequence[WindowVerdict]) -> doc.Table:
    rows: list[tuple[doc.Cell, ...]] = []
    for layers in zip(*(window.layers for window in windows), strict=True):
        worst: dict[str, float] = {}
        for drift in (drift for layer in layers for drift in layer.drifts):
            worst[drift.statistic] = max(worst.get(drift.statistic, 0.0), drift.ratio)
        rows.append((layers[0].path, *map(worst.get, _STATISTICS)))
    columns = ("layer", *(f"#{name}" for name in _STATISTICS))
    title = "largest distance by its limit, over all windows; above 1 it is no chance"
    return doc.Table(title, columns, rows)


def _moved_heads(windows: Sequence[WindowVerdict]) -> list[tuple[doc.Cell, ...]]:
    """Return the rows of the heads that moved most; JSON has all."""
    found = [
        (number, layer, head)
        for number, window in enumerate(windows, 1)
        for layer in window.layers
        for head in layer.heads
        if head.has_moved
    ]
    found.sort(key=lambda moved: -abs(moved[2].live - moved[2].reference))
    rows: list[tuple[doc.Cell, ...]] = []
    for number, layer, head in found[:_MOST_WINDOWS]:
        word = "dead" if head.is_dead else "always open" if head.is_always_open else "moved"
        shares = doc.Share(head.live), doc.Share(head.reference)
        rows.append((str(number), layer.path, head.head, *shares, head.limit, word))
    return rows


def _now(window: WindowVerdict, number: int) -> doc.Section:
    about = doc.Text(
        f"For how many tokens of window {number} each head is on, in percent, and below it in the"
        " reference. Heads that moved farther than chance explains are framed, with both numbers."
    )
    rows: list[doc.LoadRow] = []
    for layer in window.layers:
        rows += [_row(layer.path, layer, "live"), _row("", layer, "reference", is_reference=True)]
    heat = doc.HeatMap("share of tokens, in percent", "layer", tuple(rows), "loads-now")
    return doc.Section("Load by layer and head", (about, doc.HeatMaps((heat,))), shown=doc.PAGE)


def _over_time(windows: Sequence[WindowVerdict]) -> doc.Section:
    shown = windows[-_MOST_WINDOWS:]
    maps = []
    for number, first in enumerate(shown[0].layers):
        rows = [_row("reference", first, "", is_reference=True)]
        for window in shown:
            note = count(window.requests, "request")
            rows.append(_row(_clock(window.since), window.layers[number], note))
        left_out = len(windows) - len(shown)
        maps.append(doc.HeatMap(first.path, "window", tuple(rows), f"over-time-{number}", left_out))
    about = doc.Text("The same window by window, each layer by itself, the reference first.")
    return doc.Section("Load over time", (about, doc.HeatMaps(tuple(maps))), shown=doc.PAGE)


def _row(name: str, layer: LayerVerdict, note: str, *, is_reference: bool = False) -> doc.LoadRow:
    def counts(shares: Iterable[float]) -> tuple[int, ...]:
        return tuple(round(part * layer.tokens) for part in shares)

    then = counts(head.reference for head in layer.heads)
    if is_reference:
        return doc.LoadRow(name, layer.tokens, then, then, layer.num_shared_heads, note)
    live = counts(head.live for head in layer.heads)
    # Both numbers are shown where they differ: of what chance explains the live one alone.
    shown = tuple(
        before if head.has_moved else now
        for head, now, before in zip(layer.heads, live, then, strict=True)
    )
    return doc.LoadRow(name, layer.tokens, live, shown, layer.num_shared_heads, note)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
