"""A parity report as test cases for a CI.

What was measured and not judged is skipped, with the reason; what could not be compared failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moh_deploy.report.document import CiCase, CiOutcome, CiSuite
from moh_deploy.validate.accuracy.document import accuracy_case

if TYPE_CHECKING:
    from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport


def parity_suites(report: ParityReport) -> Iterator[CiSuite]:
    """Yield a suite for every comparison: its verdict, metrics, outputs and layers."""
    for part in report.comparisons:
        facts = {"subject": part.subject, "reference": part.reference, "policy": part.policy}
        facts["kernels"] = part.kernels.describe()
        # CIs tell suites apart by their names alone.
        against = part.reference if report.parts else ""
        cases = tuple(_cases(part))
        yield CiSuite(cases, against=against, facts=tuple(facts.items()), notes=part.notes)


def _cases(report: ParityReport) -> Iterator[CiCase]:
    verdict: CiOutcome = "passed" if report.equal else "failure"
    compared = len(report.accuracy) + len(report.outputs) + len(report.layers)
    said = f"{compared} comparisons" if report.equal else report.reasons[0]
    yield CiCase("verify", "verdict", verdict, said)
    yield from map(accuracy_case, report.accuracy)
    yield from map(_output_case, report.outputs)
    yield from map(_layer_case, report.layers)
    # Skipped, not left out: a CI that counts cases sees that routing was not compared.
    if not report.has_routing:
        yield CiCase("layers", "routing", "skipped", "The reference holds no gates.")


def _output_case(entry: OutputParity) -> CiCase:
    name = f"{entry.name} [{entry.vectors}]"
    measured = f"max abs error {entry.max_abs_error:.3g}"
    if entry.reason is not None:
        return CiCase("outputs", name, "failure", entry.reason)
    if entry.elements == 0:
        return CiCase("outputs", name, "skipped", "It is empty: no data.")
    if entry.tolerance is None:
        return CiCase("outputs", name, "skipped", f"{measured}, behind an explained flip")
    return CiCase("outputs", name, "passed", f"{measured}, tolerance {entry.tolerance:.3g}")


def _layer_case(entry: LayerParity) -> CiCase:
    name = f"{entry.path} [{entry.vectors}]"
    if entry.reason is not None:
        return CiCase("layers", name, "failure", entry.reason)
    if entry.no_data:
        return CiCase("layers", name, "skipped", "No token was left to compare: no data.")
    return CiCase("layers", name, "passed", ", ".join(_measured(entry)))


def _measured(entry: LayerParity) -> Iterator[str]:
    yield f"{entry.equal_decisions} of {entry.decisions} clear decisions are equal"
    yield f"gate error {entry.gate_error:.3g}"
    if entry.score_error is not None:
        yield f"score error {entry.score_error:.3g}, tolerance {entry.score_tolerance:.3g}"
    if entry.attention_error is not None:
        limit = entry.attention_tolerance
        yield f"attention error {entry.attention_error:.3g}, tolerance {limit:.3g}"
