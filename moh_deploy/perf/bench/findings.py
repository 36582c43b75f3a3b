"""What a benchmark shows, in sentences: whether skipping heads pays, and what routing costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from moh_deploy.perf.bench.candidate import RoutingOverhead
from moh_deploy.perf.bench.measured import LayerWork, Measured, PackageWork
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.timing import TimeDifference
from moh_deploy.report.numbers import percent

DENSE = "dense"


def findings(
    results: Sequence[Measured], work: Iterable[PackageWork], routing: Iterable[RoutingOverhead]
) -> Iterator[str]:
    """Yield the sentences.

    Args:
        results: Every candidate on every set of inputs; those of one set follow each other, the
            first package first.
        work: What the layers of packages skip.
        routing: What routing costs.
    """
    for _, group in groupby(results, lambda result: (result.inputs, result.sizes)):
        first, *others = group
        yield from _agreements(first, others)
        yield from _against_dense(first)
    yield from map(_routing, routing)
    for package_work in work:
        where = _where(package_work.contestant, package_work.inputs, package_work.sizes)
        yield from (f"{where}: {text}" for text in _layers(package_work.layers))


def _agreements(first: Measured, others: Sequence[Measured]) -> Iterator[str]:
    where = _where(first.contestant, first.inputs, first.sizes)
    compared = [(other, other.agreement) for other in others if other.agreement is not None]
    equal = [(row, found) for row, found in compared if found.reason is None]
    if equal:
        names = ", ".join(row.contestant for row, _ in equal)
        largest = max(found.max_abs_error for _, found in equal)
        yield f"outputs of {where}: those of {names} agree, the largest difference is {largest:.2g}"
    for row, found in compared:
        if found.reason is not None:
            yield (
                f"outputs of {where}: those of {row.contestant} differ, so its speed is that of"
                f" another computation: {found.reason.rstrip('.')}"
            )


def _against_dense(first: Measured) -> Iterator[str]:
    found = first.ratios.get(DENSE)
    if found is None:
        return
    where = _where(first.contestant, first.inputs, first.sizes)
    if found.is_faster:
        interval = f"{1 / found.high:.3f} to {1 / found.low:.3f}"
        yield f"{where}: skipping heads pays, {1 / found.value:.3f}x as fast as dense ({interval})"
    elif found.is_slower:
        interval = f"{found.low:.3f} to {found.high:.3f}"
        yield (
            f"{where}: skipping heads DOES NOT PAY, dense is {found.value:.3f}x as fast"
            f" ({interval}); `moh-deploy tune` chooses by measuring"
        )
    else:
        yield f"{where}: skipping heads shows no difference to dense"


def _routing(overhead: RoutingOverhead) -> str:
    where = _where(overhead.contestant, overhead.inputs, overhead.sizes)
    what = "router overhead" if overhead.layer is None else f"router overhead of {overhead.layer}"
    if overhead.wall_ms is None or overhead.cpu_ms is None:
        return f"{where}: {what} is not measurable, {overhead.reason}"
    return (
        f"{where}: {what} (dynamic minus fixed routing) {_milliseconds(overhead.wall_ms)} a"
        f" run, {percent(overhead.share)} of p50; CPU time {_milliseconds(overhead.cpu_ms)}"
    )


def _milliseconds(found: TimeDifference) -> str:
    """Return `0.12 ms (0.11 to 0.13)`."""
    shown = "" if found.low > 0 or found.high < 0 else ", no difference shown"
    return f"{found.value:.3g} ms ({found.low:.3g} to {found.high:.3g}{shown})"


class _Kind(NamedTuple):
    """What is said of a layer, but for its share of open gates."""

    choice: str
    judged: str
    before: str
    limit: str | None
    pays: bool
    fastest: str


def _layers(layers: Sequence[LayerWork]) -> Iterator[str]:
    """Yield one sentence for each layer, or for all of which the same is to be said."""
    bodies = [layer for layer in layers if layer.runs_as == "function"]
    if bodies:
        yield f"{_named(bodies)} {_runs(bodies)} as function bodies, which compute every head"
    kinds: dict[_Kind, list[LayerWork]] = {}
    for layer in layers:
        kind = _kind(layer)
        if kind is not None and layer not in bodies:
            kinds.setdefault(kind, []).append(layer)
    for kind, alike in kinds.items():
        yield f"{_named(alike)} {_runs(alike)} {_sentence(kind, alike)}"


def _kind(layer: LayerWork) -> _Kind | None:
    """Return what a layer's choice is judged by: the limit of its own, of a dense one by sparse."""
    if layer.choice is None or layer.predicted_fastest is None or not layer.break_even:
        return None
    order = [DENSE, *layer.break_even]
    judged = order[max(1, order.index(layer.choice))]
    limit = layer.break_even[judged]
    pays = limit is not None and layer.active_share <= limit
    before = order[order.index(judged) - 1]
    return _Kind(
        layer.choice,
        judged,
        before,
        None if limit is None else percent(limit),
        pays,
        layer.predicted_fastest,
    )


def _sentence(kind: _Kind, layers: Sequence[LayerWork]) -> str:
    """Return `sparse, which is predicted to be faster than dense up to 71 % open gates; ...`."""
    start = f"{kind.choice}, which" if kind.judged == kind.choice else f"dense; {kind.judged}"
    only = "" if kind.pays else "only "
    up_to = "at no share of" if kind.limit is None else f"{only}up to {kind.limit}"
    if kind.fastest == kind.choice:
        best = ""
    elif kind.pays and kind.fastest == kind.before:
        # The fastest is the plainer of two that are as good as equal.
        best = f", and it is faster by too little to count: {kind.fastest} is plainer"
    else:
        best = f": {kind.fastest} is predicted to be faster here"
    return (
        f"{start} is predicted to be faster than {kind.before} {up_to} open gates;"
        f" {_shares(layers)} are open{best}"
    )


def _runs(layers: Sequence[LayerWork]) -> str:
    return "runs" if len(layers) == 1 else "run"


def _named(layers: Sequence[LayerWork]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0].path}"
    return f"{len(layers)} layers ({layers[0].path} ... {layers[-1].path})"


def _shares(layers: Sequence[LayerWork]) -> str:
    shares = [layer.active_share for layer in layers]
    low, high = percent(min(shares)), percent(max(shares))
    return f"{low}" if low == high else f"{low} to {high}"


def _where(name: str, inputs: str, sizes: dict[str, int]) -> str:
    return f"{name} on {inputs} inputs at {sizes_text(sizes)}"
