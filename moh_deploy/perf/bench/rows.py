"""The rows of the tables that a report on a benchmark shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moh_deploy.perf.bench.layer_work import LayerWork
from moh_deploy.perf.bench.measured import Measured
from moh_deploy.perf.timing import Ratio


class ReportTable(NamedTuple):
    """A table; names of columns that align right begin with `#`."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


WORK_COLUMNS = [
    "layer",
    "choice",
    "runs as",
    "#rows computed",
    "#rows of dense",
    "#computed",
    "#open gates",
    "predicted to pay up to (open gates)",
]


def times_row(one: Measured, baselines: Sequence[str]) -> tuple[object, ...]:
    """Return what one candidate took, and how fast it is beside each baseline."""
    from moh_deploy.report.tables import percent

    latency, fresh = one.latency, one.fresh
    peak = fresh.peak_memory_bytes
    times = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.mean_ms)
    return (
        one.contestant,
        latency.runs,
        *map(_ms, times),
        f"{one.throughput:.4g}",
        _ms(latency.cpu_ms),
        percent(latency.utilisation),
        _ms(fresh.load_ms),
        _ms(fresh.first_run_ms),
        None if peak is None else f"{peak / 2**20:.0f}",
        *(_speed(one.ratios.get(name)) for name in baselines),
    )


def _speed(found: Ratio | None) -> str | None:
    """Return `1.25x (1.20 to 1.30)`."""
    if found is None:
        return None
    return f"{1 / found.value:.3f}x ({1 / found.high:.3f} to {1 / found.low:.3f})"


def work_row(layer: LayerWork) -> tuple[object, ...]:
    """Return what one layer skips."""
    from moh_deploy.report.tables import percent

    return (
        layer.path,
        layer.choice,
        layer.runs_as or "not replaced",
        layer.rows_computed,
        layer.rows_dense,
        percent(layer.rows_computed / max(1, layer.rows_dense)),
        percent(layer.active_share),
        break_even_text(layer),
    )


def total_row(layers: Sequence[LayerWork]) -> tuple[object, ...]:
    """Return what all layers skip together."""
    from moh_deploy.report.tables import percent

    computed = sum(layer.rows_computed for layer in layers)
    dense = sum(layer.rows_dense for layer in layers)
    share = percent(computed / max(1, dense))
    return ("all layers", None, None, computed, dense, share, None, None)


def _ms(value: float | None) -> str | None:
    """Return milliseconds to three digits, never with an exponent."""
    from moh_deploy.report.tables import figure

    return f"{value:.0f}" if value is not None and value >= 100 else figure(value)


def break_even_text(layer: LayerWork) -> str | None:
    """Return `sparse 71.0 %, projected never; best here: sparse`."""
    from moh_deploy.report.tables import percent

    if not layer.break_even:
        return None
    limits = [
        f"{choice} {'never' if share is None else percent(share)}"
        for choice, share in layer.break_even.items()
    ]
    return f"{', '.join(limits)}; best here: {layer.predicted_fastest}"
