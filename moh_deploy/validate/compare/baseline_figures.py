"""The figures of a comparison that a ratchet keeps."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from moh_deploy.report.baseline.figures import Figure, reference_key
from moh_deploy.report.baseline.ratchet import WHOLE
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import ParityResult
from moh_deploy.validate.reference.reference import RECORDED

_ROUNDING = 0.01
"""Of the tolerance: an error that was next to none may be so much."""


_Row = tuple[str, str, float, float]
"""Group and name of a figure, its value, and up to which difference that is rounding."""


def parity_figures(report: ParityReport, file: Path) -> tuple[Figure, ...]:
    """Return the figures that a comparison without differences reached, for a baseline file."""
    parts = report.comparisons
    keys = {part.reference: reference_key(part.reference, file) for part in parts}
    rows = list[_Row]()
    for reference, key in keys.items():
        # Against something else the same figures say something else.
        against = "" if key == RECORDED else f" against {key}"
        rows += _against(against, [part for part in parts if part.reference == reference])
    for run in report.layer_runs:
        group, impls = f"layer '{run.path}'", (run.runs_as, run.router_runs_as)
        rows.append((group, "replaced", int(run.runs_as is not None), 0.0))
        if run.runs_as is not None:
            # Dense is a choice, made because it is faster.
            on_kernel = "function" not in (*impls, run.projections_run_as)
            rows.append((group, "on_kernel", int(on_kernel), 0.0))
    return tuple(
        Figure.exact(group, name, value, grain=grain) for group, name, value, grain in rows
    )


def _against(against: str, parts: Sequence[ParityResult]) -> Iterator[_Row]:
    """Yield the rows of comparisons with one reference."""
    yield f"{WHOLE}{against}", "vector_sets", sum(part.vector_sets for part in parts), 0.0
    for metric in (metric for part in parts for metric in part.accuracy):
        of = "" if metric.output is None else f" of output '{metric.output}'"
        group = f"{metric.metric}{of}{against}"
        yield group, "samples", metric.samples, 0.0
        yield group, "labels", metric.labels, 0.0
        yield group, "score" if metric.better == "higher" else "loss", metric.package, 0.0
    outputs = [output for part in parts for output in part.outputs]
    judged = [output for output in outputs if output.tolerance is not None]
    for name in dict.fromkeys(output.name for output in judged):
        group, of_name = f"output '{name}'{against}", [o for o in outputs if o.name == name]
        # One figure for each output, whatever the number of vector sets: the worst of them.
        worst = max((o for o in judged if o.name == name), key=lambda output: output.max_abs_error)
        # Every run is left to itself, and some are run with forced routing besides: not on any
        # machine.
        elements = sum(output.elements or 0 for output in of_name if not output.forced)
        yield group, "elements", elements, 0.0
        rounding = _ROUNDING * (worst.tolerance or 0.0)
        yield group, "max_abs_error", worst.max_abs_error, rounding
    layers = [layer for part in parts for layer in part.layers]
    for path in dict.fromkeys(layer.path for layer in layers):
        group, runs = f"layer '{path}'{against}", [layer for layer in layers if layer.path == path]
        yield group, "decisions", sum(run.decisions for run in runs), 0.0
        yield group, "explained_flips", sum(run.excused_tokens for run in runs), 0.0
        # A layer without decisions to compare has no agreement.
        agreements = [run.agreement for run in runs if run.agreement is not None]
        if agreements:
            yield group, "agreement", min(agreements), 0.0
