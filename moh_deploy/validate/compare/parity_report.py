"""The report of a comparison: its result, and the page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moh_deploy.report.document import Document
from moh_deploy.report.report import Report
from moh_deploy.validate.compare.parity_document import parity_document
from moh_deploy.validate.compare.parity_result import ParityResult
from moh_deploy.validate.compare.routing_statistics import joined


@dataclass(frozen=True)
class ParityReport(ParityResult, Report):
    """Whether a runtime computes what the reference computed; see `ParityResult`."""

    def document(self) -> Document:
        """Return what it says of each comparison, and of all of them."""
        return parity_document(self)


def combined(reports: Sequence[ParityReport], bodies: ParityReport | None = None) -> ParityReport:
    """Join the reports of several comparisons by one runner.

    Args:
        reports: At least one.
        bodies: The comparison of the function bodies with some of the same runs, which are counted
            once; None if there was none.
    """
    first, *others = reports
    if not others and bodies is None:
        return first
    parts = (*reports, *([] if bodies is None else [bodies]))
    return replace(
        first,
        reference="; ".join(dict.fromkeys(report.reference for report in reports)),
        vector_sets=sum(report.vector_sets for report in reports),
        outputs=tuple(output for part in parts for output in part.outputs),
        layers=tuple(layer for part in parts for layer in part.layers),
        has_routing=any(report.has_routing for report in reports),
        rules={name: rule for part in parts for name, rule in part.rules.items()},
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        statistics=joined(report.statistics for report in reports),
        parts=parts,
        accuracy=tuple(metric for report in reports for metric in report.accuracy),
        checks=tuple(check for report in reports for check in report.checks),
    )
