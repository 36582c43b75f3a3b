"""Pick the figures that a baseline file keeps: of one package, beside its baselines."""

from collections.abc import Mapping

from moh_deploy.errors import ConfigError
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.report.baseline.figures import Figure


def bench_figures(report: BenchReport, called: Mapping[str, str]) -> tuple[Figure, ...]:
    """Return the figures that the package has reached, but none beside a baseline that is wrong.

    Args:
        called: Baselines and inputs that are paths, to what the baseline file calls them.
    """
    figures = []

    def group(inputs: str, sizes: Mapping[str, int]) -> str:
        """Name what figures are of, in words that are the same from run to run."""
        on = "" if report.threads is None else f", threads={report.threads}"
        return f"{called.get(inputs, inputs)} inputs at {sizes_text(dict(sizes))}{on}"

    # Rows first, heads of tokens: how many are computed hardly depends on the machine.
    for work in report.work:
        dense = sum(layer.rows_dense for layer in work.layers)
        computed = sum(layer.rows_computed for layer in work.layers)
        # A package whose layers were given no rows has no share to keep.
        if dense:
            share = computed / dense
            figures.append(Figure.exact(group(work.inputs, work.sizes), "computed_share", share))
    for row in report.results:
        if row.is_baseline:
            continue
        alike = [x for x in report.results if (x.inputs, x.sizes) == (row.inputs, row.sizes)]
        wrong = {other.contestant for other in alike if other.fault is not None}
        of = group(row.inputs, row.sizes)
        for name, found in row.ratios.items():
            # A ratio to a baseline that computes something else would be kept as reached.
            if name not in wrong:
                beside = f"{of}, beside {called.get(name, name)}"
                figures.append(Figure(beside, "ratio", found.value, found.low, found.high))
        # Milliseconds and memory are good for one machine and runtime only: see `machine_of`.
        figures.append(Figure.exact(of, "p50_ms", row.latency.p50_ms))
        if row.fresh.peak_memory_bytes is not None:
            figures.append(Figure.exact(of, "peak_memory_bytes", row.fresh.peak_memory_bytes))
    return tuple(figures)


def machine_of(report: BenchReport) -> str:
    """Return machine and runtime, on which absolute figures depend, as one line."""
    return f"{report.machine}; {report.runtime}"


def require_one_package(names: Mapping[str, bool]) -> None:
    """Check that a file of one package can be kept.

    Args:
        names: Each candidate to whether it is a baseline.

    Raises:
        ConfigError: There are several packages, or there is no baseline.
    """
    packages = [name for name, is_baseline in names.items() if not is_baseline]
    if len(packages) > 1:
        raise ConfigError(
            f"a baseline file is of one package, and there are {len(packages)}:"
            f" {', '.join(packages)}.",
            hint="Measure each by itself, with a file of its own.",
        )
    if len(packages) == len(names):
        raise ConfigError(
            "a baseline file keeps times as shares of a baseline's, since milliseconds depend on"
            " the machine, and there is no baseline.",
            hint="Give one: --baseline dense.",
        )
