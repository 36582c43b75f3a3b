"""Pick the figures that a baseline file keeps: of one package, beside its baselines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from moh_deploy.errors import ConfigError
from moh_deploy.perf.bench.measured import Measured, PackageWork
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.report.baseline.figures import Figure


def bench_figures(report: BenchReport, called: Mapping[str, str]) -> tuple[Figure, ...]:
    """Return the figures that the package has reached, but none beside a baseline that is wrong.

    Args:
        called: Baselines and inputs that are paths, to what the baseline file calls them.
    """
    naming = _Naming(called, report.threads)
    # Rows first: how many are computed hardly depends on the machine.
    work = [figure for package_work in report.work for figure in naming.of_work(package_work)]
    times = [
        figure
        for result in report.results
        if not result.is_baseline
        for figure in naming.of_times(result, _wrong_beside(report, result))
    ]
    return (*work, *times)


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


def _wrong_beside(report: BenchReport, row: Measured) -> set[str]:
    """Return the names of candidates that compute something wrong on the same inputs."""
    where = row.inputs, row.sizes
    faulty = [other for other in report.results if other.fault is not None]
    return {other.contestant for other in faulty if (other.inputs, other.sizes) == where}


@dataclass(frozen=True)
class _Naming:
    """Names figures, in words that are the same from run to run."""

    called: Mapping[str, str]
    threads: int | None

    def of_times(self, row: Measured, wrong: Collection[str]) -> Iterator[Figure]:
        group = self._group(row.inputs, row.sizes)
        for name, found in row.ratios.items():
            # A ratio to a baseline that computes something else would be kept as reached.
            if name in wrong:
                continue
            beside = f"{group}, beside {self.called.get(name, name)}"
            yield Figure(beside, "ratio", found.value, found.low, found.high)
        # Milliseconds and memory are good for one machine and runtime only: see `machine_of`.
        yield Figure.exact(group, "p50_ms", row.latency.p50_ms)
        if row.fresh.peak_memory_bytes is not None:
            yield Figure.exact(group, "peak_memory_bytes", row.fresh.peak_memory_bytes)

    def of_work(self, work: PackageWork) -> Iterator[Figure]:
        # Rows are heads of tokens; a package whose layers were given no rows has no share to keep.
        dense = sum(layer.rows_dense for layer in work.layers)
        computed = sum(layer.rows_computed for layer in work.layers)
        if dense:
            group = self._group(work.inputs, work.sizes)
            yield Figure.exact(group, "computed_share", computed / dense)

    def _group(self, inputs: str, sizes: Mapping[str, int]) -> str:
        on = "" if self.threads is None else f", threads={self.threads}"
        return f"{self.called.get(inputs, inputs)} inputs at {sizes_text(dict(sizes))}{on}"
