"""One report of many batches: a dataset of a thousand batches is not a thousand test cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from moh_deploy.validate.agreement import Top1Agreement
from moh_deploy.validate.parity_report import ParityReport, combined
from moh_deploy.validate.parity_result import LayerParity, OutputParity
from moh_deploy.validate.valid_tokens import added_tokens

Entry = TypeVar("Entry", OutputParity, LayerParity)


def folded(reports: Sequence[ParityReport]) -> ParityReport:
    """Join comparisons of batches with one reference, at least one.

    The worst batch of each output and layer stands for all; what is counted adds up.
    """
    # The parts are the batches themselves, which the fold replaces.
    whole = replace(combined(reports), parts=())
    return replace(
        whole,
        # Runs with forced routing, and outputs behind a flip, which have no tolerance, stay apart:
        # their errors answer other questions.
        outputs=_by(whole.outputs, lambda o: (o.name, o.forced, o.tolerance is None), _outputs),
        layers=_by(whole.layers, lambda layer: (layer.path,), _layers),
        tokens=added_tokens([report.tokens for report in reports if report.tokens is not None]),
    )


def _by(
    entries: Iterable[Entry],
    key: Callable[[Entry], tuple[object, ...]],
    join: Callable[[list[Entry]], Entry],
) -> tuple[Entry, ...]:
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return tuple(join(group) if len(group) > 1 else group[0] for group in groups.values())


def _outputs(group: list[OutputParity]) -> OutputParity:
    worst = max(group, key=lambda item: _badness(item.reason, item.max_abs_error, item.tolerance))
    counted = [output.elements for output in group if output.elements is not None]
    agreements = [output.top_1 for output in group if output.top_1 is not None]
    return replace(
        worst,
        vectors=_label(worst, group),
        elements=sum(counted) if counted else None,
        top_1=sum(agreements, Top1Agreement(0, 0)) if agreements else None,
    )


def _layers(group: list[LayerParity]) -> LayerParity:
    # What cannot be told has a reason, too, and hides no fault.
    worst = max(
        group,
        key=lambda layer: (
            _badness(layer.reason, layer.gate_error, layer.gate_tolerance),
            not layer.no_data,
        ),
    )
    forced = any(layer.forced for layer in group)
    return replace(
        worst,
        vectors=_label(worst, group),
        decisions=sum(layer.decisions for layer in group),
        equal_decisions=sum(layer.equal_decisions for layer in group),
        flipped_tokens=sum(layer.flipped_tokens for layer in group),
        excused_tokens=sum(layer.excused_tokens for layer in group),
        forced=forced,
        free_flips=sum(layer.own_flips for layer in group) if forced else None,
        agreement=_mean(group, lambda layer: layer.agreement),
        jaccard=_mean(group, lambda layer: layer.jaccard),
        smallest_margin=_of(min, group, lambda layer: layer.smallest_margin),
        flip_margin=_of(max, group, lambda layer: layer.flip_margin),
        margin_bound=_of(max, group, lambda layer: layer.margin_bound),
        undecided_tokens=sum(layer.undecided_tokens for layer in group),
        judged_by=max((layer.judged_by for layer in group), key=_JUDGED.index),
    )


_JUDGED = ("nothing", "choices", "scores")
"""What a batch is judged by, the strictest last."""


def _label(worst: Entry, group: list[Entry]) -> str:
    wrong = sum(output.reason is not None for output in group)
    differ = f", {wrong} of which differ" if wrong else ""
    return f"{worst.vectors}, worst of {len(group)} batches{differ}"


def _badness(reason: str | None, error: float, tolerance: float | None) -> float:
    share = error / tolerance if tolerance else error
    # What failed is worse than any error that passed. NaN that nobody judged must not win `max`.
    return (0.0 if math.isnan(share) else share) if reason is None else math.inf


def _mean(group: list[LayerParity], of: Callable[[LayerParity], float | None]) -> float | None:
    """Return the mean, batches weighing as many decisions as they hold."""
    known = [(value, layer.decisions) for layer in group if (value := of(layer)) is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _of(
    choose: Callable[[list[float]], float],
    group: list[LayerParity],
    of: Callable[[LayerParity], float | None],
) -> float | None:
    known = [value for layer in group if (value := of(layer)) is not None]
    return choose(known) if known else None
