"""Comparison of contestants with baselines, and the work of layers, as tables with drawings."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.perf.bench.gates import GateResult
from moh_deploy.perf.bench.layer_work import LayerWork
from moh_deploy.perf.bench.measured import Measured
from moh_deploy.perf.bench.report import BenchReport, PackageWork
from moh_deploy.perf.bench.rows import break_even_text
from moh_deploy.perf.timing import Ratio
from moh_deploy.report.html.scales import Scale, Tick, round_numbers
from moh_deploy.report.html.tables import Cell, Mark, Status, Table, Track, share

_SHARES = Scale(0.0, 1.0, tuple(Tick(at, f"{at:.0f} %") for at in (0.0, 50.0, 100.0)), is_log=False)


def speed_table(results: Sequence[Measured]) -> Table | None:
    """Return how many times as fast as each baseline packages are; None without baselines."""
    packages = [one for one in results if not one.is_baseline]
    pairs = [(one, name, found) for one in packages for name, found in one.ratios.items()]
    if not pairs:
        return None
    ends = [1.0, *(1 / end for _, _, found in pairs for end in (found.low, found.high))]
    scale = round_numbers(min(ends) / 1.05, max(ends) * 1.05, is_log=True)
    columns = (
        "contestant",
        "baseline",
        "times as fast, 95 % interval",
        "#speed",
        "#95 %",
        "verdict",
    )
    rows = [_speed_row(one.contestant, name, found, scale) for one, name, found in pairs]
    return Table("speed over baselines", columns, rows, scale)


def work_table(work: PackageWork) -> Table:
    """Return the rows that each layer computed beside those of a dense one."""
    columns = (
        "layer",
        "choice",
        "runs as",
        "computed of dense",
        "#rows",
        "#of dense",
        "#share",
        "#open gates",
        "predicted to pay up to (open gates)",
    )
    return Table("rows of attention", columns, list(map(_work_row, work.layers)), _SHARES)


def gate_table(report: BenchReport) -> Table:
    """Return what each gate says."""
    columns = ("gate", "contestant", "inputs", "what was measured", "verdict")
    return Table("each gate on each package", columns, list(map(_gate_row, report.gates)))


def gate_status(one: GateResult) -> Status:
    """Return the verdict of a gate; what was not measured did not pass."""
    if one.measured is None or one.limit is None:
        return Status("not measured", False)
    return Status("passed", True) if one.passed else Status("failed", False)


def _speed_row(name: str, baseline: str, found: Ratio, scale: Scale) -> Sequence[Cell]:
    speed, low, high = 1 / found.value, 1 / found.high, 1 / found.low
    words = f"{name}: {speed:.3g} times as fast as {baseline}, {low:.3g} to {high:.3g}"
    one, end = scale.at(1.0), scale.at(speed)
    marks = (
        Mark("bar", min(one, end), max(one, end), found.is_slower),
        Mark("interval", scale.at(low), scale.at(high)),
        Mark("dot", end, is_bad=found.is_slower),
        Mark("limit", one),
    )
    interval = f"{low:.3f} to {high:.3f}"
    return (name, baseline, Track(words, marks, scale), f"{speed:.3f}x", interval, _speed(found))


def _speed(found: Ratio) -> Status:
    if found.is_faster:
        return Status("faster", True)
    return Status("slower", False) if found.is_slower else Status("no difference shown", None)


def _work_row(layer: LayerWork) -> Sequence[Cell]:
    computed = layer.rows_computed / layer.rows_dense if layer.rows_dense else None
    words = f"{layer.path}: {layer.rows_computed} of {layer.rows_dense} rows computed"
    marks = (Mark("bar", 0.0, 100 * (computed or 0.0)), Mark("limit", 100 * layer.active_share))
    return (
        layer.path,
        layer.choice,
        layer.runs_as or "not replaced",
        Track(words, marks, _SHARES),
        layer.rows_computed,
        layer.rows_dense,
        share(computed),
        share(layer.active_share),
        break_even_text(layer),
    )


def _gate_row(one: GateResult) -> Sequence[Cell]:
    return (one.gate, one.contestant, one.inputs, one.reason, gate_status(one))
