"""Count the routers' choices over all compared tokens: loads of heads, and margins of choices.

These are shown, not judged: `LayerParity` judges.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from moh_deploy.package import LayerInfo, VectorSet
from moh_deploy.report import document as doc
from moh_deploy.report.document import MarginBin, MarginHistogram
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.accuracy.task import Labelling

# Four bins a decade; what is below the first edge, an exact tie included, is one more.
_EDGES = np.concatenate([[0.0], 10.0 ** (np.arange(-32, 9) / 4), [np.inf]])


@dataclass(frozen=True)
class HeadLoad:
    """For how many tokens each head of a layer is on: its gate is not 0."""

    path: str
    # The first so many heads are meant to be on for every token; None where the router's form does
    # not tell.
    num_shared_heads: int | None
    tokens: int
    reference: tuple[int, ...]  # For how many of them each head is on in the reference
    got: tuple[int, ...]  # The same in the runtime, left to itself


@dataclass(frozen=True)
class RecordedLoad:
    """For how many tokens of the recorded runs each head of a layer is on."""

    path: str
    num_shared_heads: int | None
    tokens: int
    on: tuple[int, ...]

    @classmethod
    def of(cls, layers: Sequence[LayerInfo], vectors: Sequence[VectorSet]) -> tuple[Self, ...]:
        """Count the recorded gates of each layer, [B, S, H] in each run."""
        counted = []
        for index, layer in enumerate(layers):
            gates = [vector_set.gates[index] for vector_set in vectors]
            on = np.sum([_on(array) for array in gates], axis=0) if gates else ()
            tokens = sum(array.shape[0] * array.shape[1] for array in gates)
            heads = tuple(int(count) for count in on)
            counted.append(cls(layer.path, layer.num_shared_heads, tokens, heads))
        return tuple(counted)


@dataclass(frozen=True)
class ClassLoad:
    """For how many tokens of the samples of each class each head of a layer is on."""

    path: str
    num_shared_heads: int | None
    classes: tuple[str, ...]
    samples: tuple[int, ...]  # How many each class has
    tokens: tuple[int, ...]  # How many these have
    on: tuple[tuple[int, ...], ...]  # For how many of them each head is on, one row a class


@dataclass(frozen=True)
class RoutingStatistics:
    """Counts of the routers' choices, one entry for each layer whose gates are known."""

    head_loads: tuple[HeadLoad, ...] = ()  # Over all vector sets
    # The same; where the reference gates were fed, of the choices made with them.
    margins: tuple[MarginHistogram, ...] = ()
    class_loads: tuple[ClassLoad, ...] = ()  # Of samples with labels; empty without


NO_STATISTICS = RoutingStatistics()


def layer_statistics(
    path: str,
    num_shared_heads: int | None,
    got: Array | None,
    reference: Array,
    margins: Array,
    bound: float,
    flipped: BoolArray | None,
) -> RoutingStatistics:
    """Count what a layer did in one vector set; nothing if its gates cannot be compared.

    Args:
        got: Gates [B, S, H] from the runtime; None if it returned none.
        reference: Gates [B, S, H] that are expected.
        margins: How clear each token's choice is, [B, S].
        bound: Rounding explains flips of tokens with a smaller margin.
        flipped: The tokens that chose other heads, [B, S]; None if gates cannot be compared.
    """
    if got is None or flipped is None:
        return NO_STATISTICS
    load = HeadLoad(path, num_shared_heads, margins.size, _on(reference), _on(got))
    return RoutingStatistics(
        (load,), (MarginHistogram(path, bound, _bins(margins, flipped, bound)),)
    )


def class_load(
    path: str,
    num_shared_heads: int | None,
    gates: Array,
    labels: Sequence[object] | Array,
    valid: BoolArray | None = None,
) -> ClassLoad:
    """Count for each class for how many tokens each head of a layer is on; `joined` adds batches.

    Args:
        gates: [B, S, H].
        labels: The class of each sample, [B]; a class is called as its label.
        valid: Which tokens count, [B, S]; None: all.

    Source: MoH (arXiv 2410.11842), figure "head load distribution".
    """
    # Classes without a sample in this batch are absent here; `joined` matches classes by name.
    found, of_sample = np.unique(np.asarray(labels), return_inverse=True)  # [C], [B]
    counted = np.ones(gates.shape[:2], np.bool_) if valid is None else valid
    on = ((gates != 0) & counted[..., None]).sum(axis=1)  # [B, H]
    samples = np.bincount(of_sample, minlength=len(found))
    return ClassLoad(
        path=path,
        num_shared_heads=num_shared_heads,
        classes=tuple(map(str, found)),
        samples=tuple(samples.tolist()),
        tokens=tuple(int(counted[of_sample == i].sum()) for i in range(len(found))),
        on=tuple(tuple(on[of_sample == i].sum(axis=0).tolist()) for i in range(len(found))),
    )


def joined(found: Iterable[RoutingStatistics]) -> RoutingStatistics:
    """Add up what several vector sets gave, layer by layer."""
    every = list(found)
    return RoutingStatistics(
        _by_path((load for of in every for load in of.head_loads), _loads_together),
        _by_path((margins for of in every for margins in of.margins), _margins_together),
        _by_path((load for of in every for load in of.class_loads), _classes_together),
    )


def _on(gates: Array) -> tuple[int, ...]:
    """Return for how many tokens each head is on; NaN counts, as where gates are compared."""
    return tuple((gates != 0).sum(axis=tuple(range(gates.ndim - 1))).tolist())


def _bins(margins: Array, flipped: NDArray[np.bool_], bound: float) -> tuple[MarginBin, ...]:
    values = margins.astype(np.float64)
    # NaN is below nothing, so it explains no flip; for the histogram it counts as infinite.
    explained = flipped & (values < bound)
    # The last edge is infinity: margins that are not known have a bin [inf, inf] of their own.
    values = np.where(np.isfinite(values), np.maximum(values, 0.0), np.inf)
    index = np.searchsorted(_EDGES, values, side="right") - 1  # [B, S]
    edges = [*_EDGES.tolist(), math.inf]
    tokens, excused, others = (
        np.bincount(index[which], minlength=len(_EDGES)).tolist()
        for which in (np.ones_like(flipped), explained, flipped & ~explained)
    )
    return tuple(
        MarginBin(edges[i], edges[i + 1], tokens[i], excused[i], others[i])
        for i in np.flatnonzero(tokens).tolist()
    )


def _loads_together(first: HeadLoad, other: HeadLoad) -> HeadLoad:
    return replace(
        first,
        tokens=first.tokens + other.tokens,
        reference=_added(first.reference, other.reference),
        got=_added(first.got, other.got),
    )


def _margins_together(first: MarginHistogram, other: MarginHistogram) -> MarginHistogram:
    # All histograms have the same edges, so bins with equal edges hold alike margins.
    counts: dict[tuple[float, float], tuple[int, ...]] = {}
    for bin_ in (*first.bins, *other.bins):
        edges, own = (bin_.at_least, bin_.below), (bin_.tokens, bin_.explained, bin_.unexplained)
        counts[edges] = _added(counts.get(edges, (0, 0, 0)), own)
    bins = tuple(MarginBin(*edges, *counts[edges]) for edges in sorted(counts))
    return replace(first, bins=bins)


def _classes_together(first: ClassLoad, other: ClassLoad) -> ClassLoad:
    """Return every class of either, those of the first one first."""
    samples, tokens = Counter[str](), Counter[str]()
    on: dict[str, tuple[int, ...]] = {}
    for load in (first, other):
        for index, name in enumerate(load.classes):
            samples[name] += load.samples[index]
            tokens[name] += load.tokens[index]
            on[name] = _added(on[name], load.on[index]) if name in on else load.on[index]
    return replace(
        first,
        classes=tuple(on),
        samples=tuple(samples[name] for name in on),
        tokens=tuple(tokens[name] for name in on),
        on=tuple(on.values()),
    )


def _added(group: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(group, other, strict=True))


_Entry = TypeVar("_Entry", HeadLoad, MarginHistogram, ClassLoad)


def _by_path(
    entries: Iterable[_Entry], add: Callable[[_Entry, _Entry], _Entry]
) -> tuple[_Entry, ...]:
    """Return one entry for each layer, in order of appearance."""
    sums: dict[str, _Entry] = {}
    for entry in entries:
        sums[entry.path] = add(sums[entry.path], entry) if entry.path in sums else entry
    return tuple(sums.values())


# Count which heads the samples of each class use.

# More would be an unreadable table.
_MOST_CLASSES = 100


@dataclass
class ClassLoads:
    """Counts, batch by batch, for how many tokens of the samples of each class a head is on."""

    layers: Sequence[LayerInfo]
    classes: Array  # Those that are counted
    statistics: RoutingStatistics = field(default_factory=RoutingStatistics)

    def add(
        self, values: Mapping[str, Array], labels: Array, valid: BoolArray | None = None
    ) -> None:
        """Count the classes of a batch.

        Args:
            values: Name to array: the gates of each layer, [B, S, H], among others. A layer whose
                gates are not there, or of whose first axis counts windows, is left out.
            labels: [B], or what holds no classes.
            valid: Which tokens are no padding, [B, S]; None: all. A layer of other tokens counts
                all of its own.
        """
        if not self.classes.size:
            return
        # [B]: samples of classes that are counted.
        kept = np.isin(labels, self.classes)
        found = tuple(
            class_load(
                layer.path,
                layer.num_shared_heads,
                gates[kept],
                labels[kept],
                valid[kept] if valid is not None and valid.shape == gates.shape[:2] else None,
            )
            for layer in self.layers
            if (gates := values.get(layer.gates)) is not None and len(gates) == len(labels)
        )
        self.statistics = joined([self.statistics, RoutingStatistics(class_loads=found)])


def main_classes(labels: Sequence[Array], labelling: Labelling) -> Array:
    """Return the classes of all samples; of many, those with the most samples; none of tokens."""
    # Of labels for tokens, a class of the sample does not exist.
    if any(label.ndim != 1 or label.dtype.kind not in "iu" for label in labels):
        return np.empty(0, np.int64)
    # Signed: of unsigned labels the mark to be ignored would be a large number.
    every = np.concatenate(labels).astype(np.int64)
    found, counts = np.unique(every[every != labelling.ignore], return_counts=True)
    # Stable: of classes with equally many samples the lower numbers.
    return found[np.argsort(-counts, kind="stable")[:_MOST_CLASSES]]


# What a page draws of routing: loads of heads, and margins of choices.

MOST_CLASSES = 40
_NOT_COMPARED = "Routing was not compared: the reference holds no gates."
_NO_LAYERS = "No data: there is no MoH layer whose gates could be compared."
_ABOUT_CLASSES = (
    "For how many tokens of the samples of each class each head is on, in percent. The number"
    " beside a class is that of its samples."
)


def routing_sections(
    statistics: RoutingStatistics, index: int, *, has_routing: bool
) -> Iterator[doc.Section]:
    """Yield what is drawn of a comparison."""
    loads = statistics.head_loads
    if not has_routing:
        # A terminal's verdict says so.
        yield doc.Section("Load of heads", (doc.Text(_NOT_COMPARED, shown=doc.NOT_TERMINAL),))
    elif not loads:
        yield doc.Section("Load of heads", (doc.Text(_NO_LAYERS),), shown=doc.PAGE)
    else:
        rows = tuple(
            doc.LoadRow(load.path, load.tokens, load.got, load.reference, load.num_shared_heads)
            for load in loads
        )
        yield _load_section(rows, _about_loads(loads), f"loads-{index}")
    if statistics.class_loads:
        # A page opens the last map and folds the others, so that one has the name.
        *earlier, last = statistics.class_loads
        maps = (*map(class_map, earlier), class_map(last, f"classes-{index}"))
        about = doc.Text(_ABOUT_CLASSES)
        yield doc.Section("Load of heads by class", (about, doc.HeatMaps(maps)), shown=doc.PAGE)
    if statistics.margins:
        about = doc.Text(
            "Tokens by margin: how far the last chosen head is from the first that was not. Tokens"
            " that chose other heads than the reference hang below the line. Left of the dashed"
            f" line, at {statistics.margins[0].bound:.3g}, rounding explains that."
        )
        charts = doc.MarginCharts(statistics.margins)
        yield doc.Section("Margins of choices", (about, charts), shown=doc.PAGE)


def _load_section(rows: tuple[doc.LoadRow, ...], about: str, id_: str) -> doc.Section:
    heat = doc.HeatMap("share of tokens, in percent", "layer", rows, id_)
    return doc.Section("Load of heads", (doc.Text(about), doc.HeatMaps((heat,))), shown=doc.PAGE)


def recorded_section(loads: Sequence[RecordedLoad]) -> doc.Section:
    """Return the drawing of the heads that were on when the original model was recorded."""
    rows = tuple(
        doc.LoadRow(load.path, load.tokens, load.on, load.on, load.num_shared_heads)
        for load in loads
    )
    about = (
        "For how many tokens of the recorded runs of the original model each head is on, in"
        " percent. Other inputs may open others: moh-deploy verify --inputs counts them, with"
        " --labels by class."
    )
    return _load_section(rows, about, "loads-0")


def class_map(load: ClassLoad, id_: str = "") -> doc.HeatMap:
    """Return classes by heads of one layer; of many classes, those with the most samples."""
    # ImageNet has 1,000 classes. Those with most samples have the steadiest loads.
    most = sorted(range(len(load.classes)), key=lambda index: -load.samples[index])[:MOST_CLASSES]
    rows = tuple(
        doc.LoadRow(
            load.classes[index],
            load.tokens[index],
            load.on[index],  # There is no reference for classes: both sides are the same.
            load.on[index],
            load.num_shared_heads,
            f"{load.samples[index]}",
        )
        for index in sorted(most, key=lambda index: _in_order(load.classes[index]))
    )
    return doc.HeatMap(load.path, "class", rows, id_, len(load.classes) - len(rows))


def _in_order(name: str) -> tuple[int, str]:
    """Return the key by which 2 comes before 10."""
    return (int(name), "") if name.isdecimal() else (-1, name)


def _about_loads(loads: tuple[HeadLoad, ...]) -> str:
    pairs = (pair for load in loads for pair in zip(load.got, load.reference, strict=True))
    differs = sum(got != reference for got, reference in pairs)
    cells = "The package and the reference are the same in every cell."
    if differs:
        cells = (
            f"{differs} cells are framed: the upper number is the package's, the lower one the"
            " reference's. All others are the same in both."
        )
    return f"For how many of all tokens each head is on, in percent. {cells}"
