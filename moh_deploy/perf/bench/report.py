"""How fast packages ran, beside their baselines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.errors import ValidationError
from moh_deploy.perf.bench.findings import findings
from moh_deploy.perf.bench.fixed_routing import RoutingOverhead
from moh_deploy.perf.bench.gates import GateResult
from moh_deploy.perf.bench.layer_work import LayerWork
from moh_deploy.perf.bench.measured import Measured
from moh_deploy.report.baseline.result import RatchetResult
from moh_deploy.report.document import Document
from moh_deploy.report.json import in_json
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse


@dataclass(frozen=True)
class PackageWork:
    """The work that the layers of a package skip on one set of inputs.

    Attributes:
        contestant: The package.
        inputs: `recorded`, `random`, or the file.
        sizes: Dimension sizes.
        layers: One each.
    """

    contestant: str
    inputs: str
    sizes: dict[str, int]
    layers: tuple[LayerWork, ...]


@dataclass(frozen=True)
class BenchReport(Report):
    """One comparison.

    Attributes:
        schema_version: Of its JSON; docs/bench.schema.json describes it.
        results: Every contestant on every set of inputs; those of one set follow each other.
        work: What the packages skip; nothing for baselines.
        gates: What each gate says of each package on each set of inputs.
        samples_by: The dimension that counts samples; None where that is a fixed size.
        threads: Threads within an operator; None for the runtime's own choice.
        min_time_s: Seconds that the contestants ran on each set of inputs, all together.
        warmup_s: Seconds that they ran before, untimed.
        machine: Processor, cores and instruction set.
        runtime: Name and version of the runtime.
        kernels: The kernel library that the first package was given.
        ratchet: How the package compares with a baseline file; None without one, or if a gate did
            not pass, or something is computed wrongly.
        routing: What routing costs the first package on each set of inputs, if that was asked for.
        notes: What else a reader should know.
    """

    schema_version: Literal[1] = field(default=1, init=False)
    results: tuple[Measured, ...]
    work: tuple[PackageWork, ...]
    gates: tuple[GateResult, ...]
    samples_by: str | None
    threads: int | None
    min_time_s: float
    warmup_s: float
    machine: str
    runtime: str
    kernels: KernelUse
    ratchet: RatchetResult | None = None
    routing: tuple[RoutingOverhead, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    @in_json()
    def passed(self) -> bool | None:
        """Whether every gate was measured and holds, nothing is computed wrongly, and nothing is
        worse than in the baseline file; None without gate and file."""
        if self.failure is not None:
            return False
        return None if not self.gates and self.ratchet is None else True

    @property
    def failure(self) -> ValidationError | None:
        """The error that names the first gate that did not pass, or else what is computed wrongly,
        or what is worse than it was."""
        failed = [gate for gate in self.gates if not gate.passed]
        if failed:
            more = f" ({len(failed) - 1} more did not pass)" if len(failed) > 1 else ""
            return ValidationError(f"{failed[0].sentence}{more}")
        wrong = [
            result for result in self.results if result.fault is not None and not result.is_baseline
        ]
        if wrong:
            first = wrong[0]
            return ValidationError(
                f"{first.contestant} is not what the baseline file is of: {first.fault}"
            )
        return None if self.ratchet is None else self.ratchet.failure

    def raise_if_failed(self) -> None:
        """Raise ValidationError if it did not pass."""
        if self.failure is not None:
            raise self.failure

    @property
    @in_json("findings")
    def _findings(self) -> tuple[str, ...]:
        return tuple(self.findings())

    def findings(self) -> Iterator[str]:
        """Return sentences on what it shows."""
        return findings(self.results, self.work, self.routing)

    def document(self) -> Document:
        """Return what it says."""
        from moh_deploy.perf.bench.document import bench_document

        return bench_document(self)
