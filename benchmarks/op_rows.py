"""Results of the op benchmark as rows, one for each time of ours, and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from op_candidates import DECOMPOSED, SDPA
from op_inputs import Shape
from op_timing import Timing
from rich.table import Table

from moh_deploy.runtime.kernel_use import KernelUse

ALL_HEADS = 1.0

# What stands above the columns of candidates, in their order.
_HEADINGS = {
    DECOMPOSED: "decomposed",
    "MultiHeadAttention": "MHA",
    "Attention": "Attention",
    "GroupQueryAttention": "GQA",
    SDPA: "SDPA",
}


@dataclass(frozen=True)
class Ours:
    """What one kernel took at one share of active heads.

    Attributes:
        active: Share that was asked for.
        flops: Of both products, for open gates and visible keys only; the mean over the inputs.
    """

    kernel: KernelUse
    active: float
    flops: float
    timing: Timing


@dataclass(frozen=True)
class Result:
    """One shape on some number of threads: times from the same rounds.

    Attributes:
        dense: Name of what computes every head to its times.
    """

    shape: Shape
    dtype: str
    threads: int
    ours: Sequence[Ours]
    dense: Mapping[str, Timing]


@dataclass(frozen=True)
class Row:
    """One time of ours and what stands beside it.

    Attributes:
        moh_ms, best_fused_ms, dense_ms: CPU time, median, on one thread; wall time, minimum, on
            several.
        moh_median_ms: Median on any number of threads.
        best_fused: The fastest of `dense_ms` that is one fused operator; all compute every head.
        ratio: `best_fused_ms / moh_ms`; above 1 ours is faster.
        peak_share: Of the float32 multiply-add peak of that many cores; None without a peak.
        t_over_dense: Over our time with all heads active.
        thread_speedup: Smallest time on one thread over smallest time on several.
        max_abs_error: Against float64.
    """

    shape: str
    active: float
    threads: int
    moh_ms: float
    best_fused: str
    best_fused_ms: float
    ratio: float
    peak_share: float | None
    t_over_dense: float | None
    thread_speedup: float | None
    moh_median_ms: float
    max_abs_error: float
    dense_ms: Mapping[str, float]
    dtype: str
    instruction_set: str | None
    compute_type: str
    clock: str
    rounds: int

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def rows_of(results: Sequence[Result], peak_gflops: float | None) -> list[Row]:
    """Return a row for each of our times, in the order they were measured."""
    return [_row(result, ours, results, peak_gflops) for result in results for ours in result.ours]


def _row(result: Result, ours: Ours, results: Sequence[Result], peak_gflops: float | None) -> Row:
    dense_ms = {name: _figure(timing, result.threads) for name, timing in result.dense.items()}
    fused = [name for name in dense_ms if name != DECOMPOSED]
    best = min(fused, key=lambda name: dense_ms[name])
    moh_ms = _figure(ours.timing, result.threads)
    all_heads = _find([result], result.shape, ours.kernel, ALL_HEADS, result.threads)
    one_thread = (
        None if result.threads == 1 else _find(results, result.shape, ours.kernel, ours.active, 1)
    )
    peak = None if peak_gflops is None else peak_gflops * result.threads
    return Row(
        shape=result.shape.name,
        active=ours.active,
        threads=result.threads,
        moh_ms=moh_ms,
        best_fused=best,
        best_fused_ms=dense_ms[best],
        ratio=dense_ms[best] / moh_ms,
        peak_share=None if peak is None else ours.flops / moh_ms * 1e-6 / peak,
        t_over_dense=None if all_heads is None else moh_ms / _figure(all_heads, result.threads),
        thread_speedup=None if one_thread is None else one_thread.min_ms / ours.timing.min_ms,
        moh_median_ms=ours.timing.median_ms,
        max_abs_error=ours.timing.max_abs_error,
        dense_ms=dense_ms,
        dtype=result.dtype,
        instruction_set=ours.kernel.instruction_set,
        compute_type=ours.kernel.compute_type,
        clock="cpu" if result.threads == 1 else "wall",
        rounds=len(ours.timing.runs_ms),
    )


def _figure(timing: Timing, threads: int) -> float:
    """CPU time by its median; wall time, which others only lengthen, by its minimum."""
    return timing.median_ms if threads == 1 else timing.min_ms


def _find(
    results: Sequence[Result], shape: Shape, kernel: KernelUse, active: float, threads: int
) -> Timing | None:
    for result in results:
        if result.shape == shape and result.threads == threads:
            for ours in result.ours:
                if (ours.kernel, ours.active) == (kernel, active):
                    return ours.timing
    return None


def table_of(rows: Sequence[Row], threads: int) -> Table:
    """Return the rows of some number of threads as a table of milliseconds and ratios."""
    rows = [row for row in rows if row.threads == threads]
    dense = [name for name in _HEADINGS if any(name in row.dense_ms for row in rows)]
    table = Table(title=_title(threads), title_justify="left")
    for heading in ("shape", "kernel"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        *("active", "moh ms", "t/t(1)", "% peak", "error"),
        *(_HEADINGS[name] for name in dense),
        *("fused/moh", "dec./moh"),
        *(() if threads == 1 else ("speed-up",)),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, dense), end_section=row.active == min(r.active for r in rows))
    return table


def _title(threads: int) -> str:
    if threads == 1:
        return "One thread: CPU time, medians of interleaved runs, ms"
    return (
        f"{threads} threads: wall time, minimum (median) of interleaved runs, ms, and the speed-up"
        " over one thread; weak evidence on a shared machine"
    )


def _cells(row: Row, dense: Sequence[str]) -> list[str]:
    ours = _ms(row.moh_ms)
    if row.threads > 1:
        ours += f" ({_ms(row.moh_median_ms)})"
    decomposed = row.dense_ms.get(DECOMPOSED)
    return [
        row.shape,
        _kernel_name(row),
        f"{row.active:g}",
        ours,
        _number(row.t_over_dense),
        "-" if row.peak_share is None else f"{100 * row.peak_share:.0f}",
        f"{row.max_abs_error:.1e}",
        *(_ms(row.dense_ms.get(name)) for name in dense),
        f"{row.ratio:.2f}",
        "-" if decomposed is None else f"{decomposed / row.moh_ms:.2f}",
        *(() if row.threads == 1 else (_number(row.thread_speedup),)),
    ]


def _kernel_name(row: Row) -> str:
    instruction_set = row.instruction_set or "best"
    if row.compute_type == "float32":
        return instruction_set
    return f"{instruction_set}, {row.compute_type}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
