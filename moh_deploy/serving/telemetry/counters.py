"""Count what the routers of a served model do: tokens in every run, gates in one run of some."""

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx

from moh_deploy.config.dims import DimExpr
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.serving.metrics import Family, FamilyKind, Series
from moh_deploy.serving.source import ServedRun
from moh_deploy.serving.telemetry import routing
from moh_deploy.system.npz import Array

# The size of each dynamic dimension of a run, always in the same order.
Dims: TypeAlias = Mapping[str, int]

_Axis: TypeAlias = int | DimExpr
_MOST_SIZES = 4096


@dataclass(slots=True)
class _Mix:
    """The runs of one mix of sizes that are not added up yet."""

    dims: Dims
    runs: int = 0
    valid: int = 0


class TokenCounter:
    """Counts the tokens of each layer in runs of any sizes; all but `knows` wants a lock held.

    They follow from the sizes of the inputs: so tokens are counted in every run, and gates are
    fetched in few. Where the graph does not say how the axes of gates hang on the inputs'
    dimensions, they are looked up: a run of new sizes has to be seen once.

    Args:
        inputs: Of the model.
        graph: With the shapes of its values, as far as they can be inferred.
        gates: Of each layer, names of its gates and of what has the same batch and tokens.
        valid_tokens: The mask of valid tokens, [batch, tokens], see `token_mask`; None for all.
    """

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        graph: onnx.GraphProto,
        gates: Sequence[Sequence[str]],
        valid_tokens: str | None,
    ) -> None:
        shapes = {info.name: _axes(info.shape) for info in inputs}
        self._mask = None if valid_tokens is None else mask_input(valid_tokens)
        self._marks_padding = valid_tokens is not None and marks_padding(valid_tokens)
        self._mask_shape = () if self._mask is None else shapes[self._mask]
        given = [
            axis.name for axes in shapes.values() for axis in axes if not isinstance(axis, int)
        ]
        values = {
            value.name: _axes(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                for dim in value.type.tensor_type.shape.dim
            )
            for value in (*graph.value_info, *graph.output, *graph.input)
        }

        def shape_of(names: Sequence[str]) -> tuple[_Axis, ...] | None:
            for shape in (values.get(name, ())[:2] for name in names):
                known = [axis for axis in shape if isinstance(axis, int) or axis.name in given]
                if len(known) == 2:
                    return shape
            return None

        # Batch and tokens of each layer; None where no value tells them.
        self._shapes = tuple(map(shape_of, gates))
        self._has_unknown = None in self._shapes
        self._seen: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}
        # A run adds one to its mix of sizes: what the mixes come to is reckoned when asked for.
        self._open: dict[tuple[int, ...], _Mix] = {}
        self._tokens = [0] * len(self._shapes)

    def knows(self, dims: Dims) -> bool:
        """Tell whether the tokens of a run of these sizes are known."""
        return not self._has_unknown or tuple(dims.values()) in self._seen

    def learn(self, dims: Dims, shapes: Sequence[tuple[int, ...]]) -> None:
        """Remember the shapes of all layers' gates, [B, S, H], in a run of these sizes."""
        if self._has_unknown:
            # Enough for every mix of sizes that is served; what is forgotten is seen again.
            if len(self._seen) >= _MOST_SIZES:
                self._close()
                self._seen.clear()
            self._seen[tuple(dims.values())] = tuple(shape[:2] for shape in shapes)

    def add(self, dims: Dims, inputs: Mapping[str, Array]) -> None:
        """Count the tokens of a run."""
        key = tuple(dims.values())
        mix = self._open.get(key)
        if mix is None:
            if len(self._open) >= _MOST_SIZES:
                self._close()
            mix = self._open[key] = _Mix(dict(dims))
        mix.runs += 1
        if self._mask is not None:
            mask = inputs[self._mask]
            marked = int(np.count_nonzero(mask))
            mix.valid += mask.size - marked if self._marks_padding else marked

    def totals(self) -> tuple[int, ...]:
        """Return the tokens of each layer in all runs, padding left out."""
        self._close()
        return tuple(self._tokens)

    def _close(self) -> None:
        # Sizes that another package answered may be seen later: such a mix waits.
        waiting = {}
        for key, mix in self._open.items():
            if self._has_unknown and key not in self._seen:
                waiting[key] = mix
                continue
            mask_shape = _sizes(self._mask_shape, mix.dims)
            for layer, axes in enumerate(self._shapes):
                shape = self._seen[key][layer] if axes is None else _sizes(axes, mix.dims)
                is_masked = self._mask is not None and mask_shape == shape
                self._tokens[layer] += mix.valid if is_masked else mix.runs * shape[0] * shape[1]
        self._open = waiting


def _axes(shape: Iterable[int | str]) -> tuple[_Axis, ...]:
    return tuple(dim if isinstance(dim, int) else DimExpr.of_input(dim) for dim in shape)


def _sizes(axes: Iterable[_Axis], dims: Dims) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else axis.evaluate(dims) for axis in axes)


@dataclass(frozen=True)
class Totals:
    """Counts since the start, all taken at one moment."""

    tokens: tuple[int, ...]  # tokens of each layer in the runs that were answered, padding left out
    requests: int  # requests whose routing was read
    counts: routing.Counts  # of these: the sum of their rows


class Telemetry:
    """Observes a served model; several threads may call it.

    Args:
        model: The name that clients call it by.
        sample_every: Gates are read in one run of so many; 0 for none. Which one of so many is
            drawn, so that traffic with a beat of its own is not always met at the same place.
    """

    def __init__(
        self,
        package: OnnxPackage,
        *,
        model: str,
        version: str = "1",
        sample_every: int = 128,
        per_head: bool = False,
        seed: int | None = None,
    ) -> None:
        self.reader = routing.RoutingReader.of(package)
        self.inner = self.reader.names
        self.digest = package.manifest.files["model.onnx"]
        self._labels = {"model": model, "version": version}
        self._per_head = per_head
        model_proto = onnx.load(package.model_path, load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(model_proto)
        # The gates and, where a MoHRouter makes these very gates, what it reads: of equal tokens.
        gates = [
            (values.gates, *values.router.logits.values())
            if values.router is not None and values.router.gates == values.gates
            else (values.gates,)
            for values in self.reader.values
        ]
        inputs = package.manifest.inputs
        self._tokens = TokenCounter(inputs, inferred.graph, gates, self.reader.valid_tokens)
        self._sample_every, self._seed = sample_every, seed
        self._is_turn = _turns(sample_every, seed)
        self._this_run = threading.local()
        self._lock = threading.Lock()
        self._requests = 0
        self._counts = np.zeros(self.reader.layout.width)
        self._window: routing.WindowRecorder | None = None

    # What stands in these two is done in every run: a model of 0.2 ms feels each microsecond.

    def wanted(self, dims: Dims) -> tuple[str, ...]:
        """Return the gates and logits where the run that begins is to be read."""
        is_read = self._is_turn() or not self._tokens.knows(dims)
        # Others may want the same values of other runs: what is there says nothing.
        self._this_run.is_read = is_read
        return self.inner if is_read else ()

    def saw(self, run: ServedRun) -> None:
        """Count a run that was answered."""
        # Another package, which took over, has no values of these names.
        is_read = self._this_run.is_read and set(self.inner) <= run.results.keys()
        rows = self.reader.count(run.inputs, run.results, run.sizes) if is_read else None
        with self._lock:
            if rows is not None:
                shapes = [run.results[values.gates].shape for values in self.reader.values]
                self._tokens.learn(run.dims, shapes)
                self._requests += len(run.sizes)
                self._counts += rows.sum(axis=0)
                if self._window is not None:
                    self._window.add(rows, len(run.sizes))
            self._tokens.add(run.dims, run.inputs)

    def totals(self) -> Totals:
        """Return what was counted since the start."""
        with self._lock:
            return Totals(self._tokens.totals(), self._requests, self._counts.copy())

    def start_window(self, *, sample_every: int | None = None) -> None:
        """Begin to keep the counts of each request whose routing is read; what was kept is dropped.

        Args:
            sample_every: Another rate than that of the counters until `stop_window`; None for this.
        """
        with self._lock:
            self._window = routing.WindowRecorder(self.reader.layout, self.digest)
            every = self._sample_every if sample_every is None else sample_every
            self._is_turn = _turns(every, self._seed)

    def stop_window(self) -> None:
        """Keep no more; what was kept can still be dumped."""
        with self._lock:
            if self._window is not None:
                self._window.stop()
            self._is_turn = _turns(self._sample_every, self._seed)

    def dump_window(self) -> routing.RecordedWindow | None:
        """Return what was kept so far; None if nothing was ever started."""
        # Without the lock, which every answer takes: to join a full window takes a while.
        window = self._window
        return None if window is None else window.recorded()

    def families(self) -> tuple[Family, ...]:
        """Return what was counted, as metrics."""
        totals, columns = self.totals(), self.reader.layout.columns
        by_name: dict[str, list[Series]] = {name: [] for name in _FAMILIES}
        by_name["moh_package_info"].append(Series({**self._labels, "digest": self.digest}, 1))
        by_name["moh_sampled_requests_total"].append(Series(self._labels, totals.requests))
        for layer, tokens in zip(columns, totals.tokens, strict=True):
            for name, series in self._of_layer(layer, tokens, totals.counts):
                by_name[name].append(series)
        return tuple(
            Family(name, help, kind, tuple(by_name[name]))
            for name, (kind, help) in _FAMILIES.items()
        )

    def close(self) -> None:
        """Hold nothing but memory."""

    def _of_layer(
        self, columns: routing.LayerColumns, tokens: int, counts: routing.Counts
    ) -> Iterator[tuple[str, Series]]:
        """Yield the series of a layer, each with the name of its family."""
        labels = {**self._labels, "layer": columns.layer.path}
        yield "moh_routed_tokens_total", Series(labels, tokens)
        yield "moh_sampled_tokens_total", Series(labels, float(counts[columns.tokens]))
        yield "moh_nonfinite_gates_total", Series(labels, float(counts[columns.nonfinite]))
        for series in self._by_head(labels, counts[columns.on]):
            yield "moh_head_activations_total", series
        # Without a known border between the two, all is routed.
        border, mass = columns.layer.num_shared_heads or 0, counts[columns.mass]
        shared = self._by_head({**labels, "kind": "shared"}, mass[:border])
        routed = self._by_head({**labels, "kind": "routed"}, mass[border:], first=border)
        for series in (*shared, *routed):
            yield "moh_gate_mass_total", series
        if columns.layer.has_margins:
            below = [round(count) for count in np.cumsum(counts[columns.margins])]
            buckets = dict(zip(routing.MARGIN_EDGES, below, strict=True))
            margin_sum = float(counts[columns.margin_sum])
            yield "moh_router_margin", Series(labels, margin_sum, buckets)

    def _by_head(
        self, labels: Mapping[str, str], values: routing.Counts, *, first: int = 0
    ) -> Iterator[Series]:
        if not self._per_head:
            yield Series(labels, float(values.sum()))
            return
        for head, value in enumerate(values, first):
            yield Series({**labels, "head": str(head)}, float(value))


_FAMILIES: Mapping[str, tuple[FamilyKind, str]] = {
    "moh_package_info": ("gauge", "The package: digest of its model.onnx."),
    "moh_routed_tokens_total": ("counter", "Tokens that a layer routed, without padding."),
    "moh_sampled_requests_total": ("counter", "Requests whose routing was read."),
    "moh_sampled_tokens_total": (
        "counter",
        "Tokens of the requests whose routing was read: what activations, gate mass and margins"
        " are of.",
    ),
    "moh_head_activations_total": ("counter", "Pairs of a token and a head that is on for it."),
    "moh_gate_mass_total": ("counter", "Sum of the gates' absolute values."),
    "moh_nonfinite_gates_total": ("counter", "Gates that are NaN or infinite."),
    "moh_router_margin": (
        "histogram",
        "How far the scores of the last chosen and the first unchosen head are apart.",
    ),
}


_DRAWN = 1009


def _turns(every: int, seed: int | None) -> Callable[[], bool]:
    """Draw one run of each so many, or none of 0: return what tells, run by run, if it is one."""
    draw = random.Random(seed)
    # A beat of as many runs as these is met by no traffic but one made for it.
    period = max(1, every * _DRAWN)
    starts = range(0, period, every) if every else ()
    chosen = frozenset(start + draw.randrange(every) for start in starts)
    numbers = itertools.count()  # One call of C: no two threads get the same number.
    return lambda: next(numbers) % period in chosen
