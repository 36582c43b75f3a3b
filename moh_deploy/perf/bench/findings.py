"""Summarise a benchmark in sentences: does skipping heads pay, and the cost of routing."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from moh_deploy.perf.bench.candidate import RoutingOverhead
from moh_deploy.perf.bench.measured import LayerWork, Measured, PackageWork
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.timing import TimeDifference
from moh_deploy.report.document import percent

DENSE = "dense"


def findings(
    results: Sequence[Measured], work: Iterable[PackageWork], routing: Iterable[RoutingOverhead]
) -> Iterator[str]:
    """Yield the sentences of a benchmark.

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


_BODIES = "as function bodies, which compute every head"


def _layers(layers: Sequence[LayerWork]) -> Iterator[str]:
    """Yield a sentence for each layer, or for several with the same finding."""
    groups: dict[str, list[LayerWork]] = {_BODIES: []}
    for layer in layers:
        text = _choice_text(layer)
        if text is not None:
            groups.setdefault(text, []).append(layer)
    for text, alike in groups.items():
        if alike:
            first, last = alike[0].path, alike[-1].path
            named = f"{len(alike)} layers ({first} ... {last}) run"
            if len(alike) == 1:
                named = f"layer {first} runs"
            shares = [layer.active_share for layer in alike]
            low, high = percent(min(shares)), percent(max(shares))
            yield f"{named} {text.format(shares=low if low == high else f'{low} to {high}')}"


def _choice_text(layer: LayerWork) -> str | None:
    """Say what speaks for a layer's choice, its share of open gates left out.

    `sparse, which is predicted to be faster than dense up to 71 % open gates; {shares} are open`.
    """
    if layer.runs_as == "function":
        return _BODIES
    choice, fastest = layer.choice, layer.predicted_fastest
    if choice is None or fastest is None or not layer.break_even:
        return None
    # A choice is judged by the limit of its own, a dense layer by that of sparse.
    order = [DENSE, *layer.break_even]
    at = max(1, order.index(choice))
    judged, plainer, limit = order[at], order[at - 1], layer.break_even[order[at]]
    pays = limit is not None and layer.active_share <= limit
    start = f"{choice}, which" if judged == choice else f"dense; {judged}"
    up_to = "at no share of"
    if limit is not None:
        up_to = f"up to {percent(limit)}" if pays else f"only up to {percent(limit)}"
    end = f": {fastest} is predicted to be faster here"
    if fastest == choice:
        end = ""
    elif pays and fastest == plainer:
        # The fastest is the plainer of two that are as good as equal.
        end = f", and it is faster by too little to count: {fastest} is plainer"
    return (
        f"{start} is predicted to be faster than {plainer} {up_to} open gates;"
        f" {{shares}} are open{end}"
    )


def _where(name: str, inputs: str, sizes: dict[str, int]) -> str:
    return f"{name} on {inputs} inputs at {sizes_text(sizes)}"
