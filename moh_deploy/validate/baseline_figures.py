"""The figures of a comparison that a ratchet keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from moh_deploy.report.baseline.figures import Figure
from moh_deploy.report.baseline.path_keys import reference_key
from moh_deploy.report.baseline.ratchet import WHOLE
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.accuracy.metric_parity import MetricParity
from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport
from moh_deploy.validate.reference import RECORDED

_ROUNDING = 0.01
"""Of the tolerance: an error that was next to none may be so much."""


def parity_figures(report: ParityReport, file: Path) -> tuple[Figure, ...]:
    """Return the figures that a comparison without differences reached, for a baseline file."""
    parts = report.comparisons
    figures: list[Figure] = []
    for reference in dict.fromkeys(one.reference for one in parts):
        compared = [one for one in parts if one.reference == reference]
        figures += _against(reference_key(reference, file), compared)
    return (*figures, *(figure for run in report.layer_runs for figure in _of_run(run)))


def _against(reference: str, parts: Sequence[ParityReport]) -> Iterator[Figure]:
    # Against something else the same figures say something else.
    against = "" if reference == RECORDED else f" against {reference}"
    layers = [layer for one in parts for layer in one.layers]
    outputs = [one for part in parts for one in part.outputs]
    yield Figure.exact(f"{WHOLE}{against}", "vector_sets", sum(one.vector_sets for one in parts))
    for metric in (one for part in parts for one in part.accuracy):
        yield from _of_metric(metric, against)
    for name in dict.fromkeys(one.name for one in outputs if one.tolerance is not None):
        same = [one for one in outputs if one.name == name]
        yield from _of_output(f"output '{name}'{against}", same)
    for path in dict.fromkeys(one.path for one in layers):
        runs = [one for one in layers if one.path == path]
        yield from _of_layer(f"layer '{path}'{against}", runs)


def _of_metric(one: MetricParity, against: str) -> Iterator[Figure]:
    of = "" if one.output is None else f" of output '{one.output}'"
    group = f"{one.metric}{of}{against}"
    yield Figure.exact(group, "samples", one.samples)
    yield Figure.exact(group, "labels", one.labels)
    yield Figure.exact(group, "score" if one.better == "higher" else "loss", one.package)


def _of_output(group: str, entries: Sequence[OutputParity]) -> Iterator[Figure]:
    # One figure for each output, whatever the number of vector sets: the worst of them.
    judged = [one for one in entries if one.tolerance is not None]
    worst = max(judged, key=lambda one: one.max_abs_error)
    # Every run is left to itself, and some are run with forced routing besides: not on any machine.
    free = [one for one in entries if not one.forced]
    yield Figure.exact(group, "elements", sum(one.elements or 0 for one in free))
    yield Figure.exact(
        group, "max_abs_error", worst.max_abs_error, grain=_ROUNDING * (worst.tolerance or 0.0)
    )


def _of_layer(group: str, entries: Sequence[LayerParity]) -> Iterator[Figure]:
    flips = sum(one.excused_tokens for one in entries)
    # A layer without decisions to compare has no agreement.
    agreements = [one.agreement for one in entries if one.agreement is not None]
    yield Figure.exact(group, "decisions", sum(one.decisions for one in entries))
    yield Figure.exact(group, "explained_flips", flips)
    if agreements:
        yield Figure.exact(group, "agreement", min(agreements))


def _of_run(run: LayerRun) -> Iterator[Figure]:
    group = f"layer '{run.path}'"
    yield Figure.exact(group, "replaced", int(run.runs_as is not None))
    if run.runs_as is not None:
        # Dense is a choice, made because it is faster.
        on_kernel = "function" not in (run.runs_as, run.router_runs_as, run.projections_run_as)
        yield Figure.exact(group, "on_kernel", int(on_kernel))
