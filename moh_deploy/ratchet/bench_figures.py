"""The figures of a measurement that a ratchet keeps: of one package, beside its baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moh_deploy.errors import ConfigError
from moh_deploy.ratchet.figures import Figure
from moh_deploy.report.bench import BenchReport, PackageWork
from moh_deploy.report.choices import sizes_text
from moh_deploy.tuning.measured import Measured


def bench_figures(report: BenchReport) -> tuple[Figure, ...]:
    """Return what the package has reached."""
    work = [figure for one in report.work for figure in _of_work(one, report.threads)]
    measured = [one for one in report.results if not one.is_baseline]
    return (*work, *(figure for one in measured for figure in _of_times(one, report.threads)))


def machine_of(report: BenchReport) -> str:
    """Return what absolute figures depend on, as a line."""
    return f"{report.machine}; {report.runtime}"


def require_one_package(names: Mapping[str, bool]) -> None:
    """Check that a file of one package can be kept.

    Args:
        names: Each contestant to whether it is a baseline.

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


def _of_times(one: Measured, threads: int | None) -> Iterator[Figure]:
    group = _group(one.inputs, one.sizes, threads)
    for name, found in one.ratios.items():
        yield Figure(f"{group}, beside {name}", "ratio", found.value, found.low, found.high)
    yield Figure.exact(group, "p50_ms", one.latency.p50_ms)
    if one.fresh.peak_memory_bytes is not None:
        yield Figure.exact(group, "peak_memory_bytes", one.fresh.peak_memory_bytes)


def _of_work(work: PackageWork, threads: int | None) -> Iterator[Figure]:
    dense = sum(layer.rows_dense for layer in work.layers)
    computed = sum(layer.rows_computed for layer in work.layers)
    if dense:
        group = _group(work.inputs, work.sizes, threads)
        yield Figure.exact(group, "computed_share", computed / dense)


def _group(inputs: str, sizes: Mapping[str, int], threads: int | None) -> str:
    on = "" if threads is None else f", threads={threads}"
    return f"{inputs} inputs at {sizes_text(dict(sizes))}{on}"
