"""The figures of a comparison that a ratchet keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from moh_deploy.report.baseline.figures import Figure, reference_key
from moh_deploy.report.baseline.ratchet import WHOLE
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.accuracy.metric_parity import MetricParity
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity, ParityResult
from moh_deploy.validate.reference.reference import RECORDED

_ROUNDING = 0.01
"""Of the tolerance: an error that was next to none may be so much."""


def parity_figures(report: ParityReport, file: Path) -> tuple[Figure, ...]:
    """Return the figures that a comparison without differences reached, for a baseline file."""
    parts = report.comparisons
    figures: list[Figure] = []
    for reference in dict.fromkeys(part.reference for part in parts):
        compared = [part for part in parts if part.reference == reference]
        figures += _against(reference_key(reference, file), compared)
    return (*figures, *(figure for run in report.layer_runs for figure in _of_run(run)))


def _against(reference: str, parts: Sequence[ParityResult]) -> Iterator[Figure]:
    # Against something else the same figures say something else.
    against = "" if reference == RECORDED else f" against {reference}"
    layers = [layer for part in parts for layer in part.layers]
    outputs = [output for part in parts for output in part.outputs]
    yield Figure.exact(f"{WHOLE}{against}", "vector_sets", sum(part.vector_sets for part in parts))
    for metric in (metric for part in parts for metric in part.accuracy):
        yield from _of_metric(metric, against)
    for name in dict.fromkeys(output.name for output in outputs if output.tolerance is not None):
        same = [output for output in outputs if output.name == name]
        yield from _of_output(f"output '{name}'{against}", same)
    for path in dict.fromkeys(layer.path for layer in layers):
        runs = [layer for layer in layers if layer.path == path]
        yield from _of_layer(f"layer '{path}'{against}", runs)


def _of_metric(metric: MetricParity, against: str) -> Iterator[Figure]:
    of = "" if metric.output is None else f" of output '{metric.output}'"
    group = f"{metric.metric}{of}{against}"
    yield Figure.exact(group, "samples", metric.samples)
    yield Figure.exact(group, "labels", metric.labels)
    yield Figure.exact(group, "score" if metric.better == "higher" else "loss", metric.package)


def _of_output(group: str, entries: Sequence[OutputParity]) -> Iterator[Figure]:
    # One figure for each output, whatever the number of vector sets: the worst of them.
    judged = [entry for entry in entries if entry.tolerance is not None]
    worst = max(judged, key=lambda item: item.max_abs_error)
    # Every run is left to itself, and some are run with forced routing besides: not on any machine.
    free = [entry for entry in entries if not entry.forced]
    yield Figure.exact(group, "elements", sum(output.elements or 0 for output in free))
    yield Figure.exact(
        group, "max_abs_error", worst.max_abs_error, grain=_ROUNDING * (worst.tolerance or 0.0)
    )


def _of_layer(group: str, entries: Sequence[LayerParity]) -> Iterator[Figure]:
    flips = sum(entry.excused_tokens for entry in entries)
    # A layer without decisions to compare has no agreement.
    agreements = [entry.agreement for entry in entries if entry.agreement is not None]
    yield Figure.exact(group, "decisions", sum(entry.decisions for entry in entries))
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
