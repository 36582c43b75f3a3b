"""Count what the routers of a served model do: tokens in every run, gates in one run of some."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from moh_deploy.package import OnnxPackage
from moh_deploy.serving.metrics import Family, Series
from moh_deploy.serving.telemetry.layout import MARGIN_EDGES, LayerColumns
from moh_deploy.serving.telemetry.routing import Counts, RoutingReader
from moh_deploy.serving.telemetry.token_sizes import Dims, TokenCounter, shapes_inferred
from moh_deploy.serving.telemetry.window import RecordedWindow, WindowRecorder
from moh_deploy.validate.reference.layer_values import LayerValues

if TYPE_CHECKING:
    from moh_deploy.serving.served_model import ServedRun


@dataclass(frozen=True)
class Totals:
    """Counts since the start, all taken at one moment.

    Attributes:
        runs: Runs that were answered.
        tokens: Tokens of each layer in them, padding left out.
        requests: Requests whose routing was read.
        counts: Of these: the sum of their rows.
    """

    runs: int
    tokens: tuple[int, ...]
    requests: int
    counts: Counts


class Telemetry:
    """Observes a served model; several threads may call it.

    Args:
        package: What is served.
        model: The name that clients call it by.
        version: Its version.
        sample_every: Gates are read in one run of so many; 0 for none. Which one of so many is
            drawn, so that traffic with a beat of its own is not always met at the same place.
        per_head: Show heads one by one.
        seed: Of the drawing.
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
        self.reader = RoutingReader.of(package)
        self.inner = self.reader.names
        self.digest = package.manifest.files["model.onnx"]
        self._labels = {"model": model, "version": version}
        self._per_head = per_head
        graph = shapes_inferred(onnx.load(package.model_path, load_external_data=False))
        gates = [_of_the_same_tokens(one) for one in self.reader.values]
        inputs = package.manifest.inputs
        self._tokens = TokenCounter(inputs, graph, gates, self.reader.valid_tokens)
        self._turns = _Turns(sample_every, seed)
        self._sample_every, self._seed = sample_every, seed
        self._this_run = threading.local()
        self._lock = threading.Lock()
        self._requests = 0
        self._counts = np.zeros(self.reader.layout.width)
        self._window: WindowRecorder | None = None

    # What stands in these two is done in every run: a model of 0.2 ms feels each microsecond.

    def wanted(self, dims: Dims) -> tuple[str, ...]:
        """Return the gates and logits where the run that begins is to be read."""
        is_read = self._turns.next()
        if self._tokens.has_unknown and not is_read:
            with self._lock:
                is_read = not self._tokens.knows(dims)
        # Others may want the same values of other runs: what is there says nothing.
        self._this_run.is_read = is_read
        return self.inner if is_read else ()

    def saw(self, run: ServedRun) -> None:
        """Count a run that was answered."""
        # Another package, which took over, has no values of these names.
        if self._this_run.is_read and set(self.inner) <= run.results.keys():
            self._read(run)
        with self._lock:
            self._tokens.add(run.dims, run.inputs)

    def _read(self, run: ServedRun) -> None:
        counted = self.reader.count(run.inputs, run.results, run.sizes)
        shapes = [run.results[one.gates].shape for one in self.reader.values]
        with self._lock:
            self._tokens.learn(run.dims, shapes)
            self._requests += int(counted.requests.sum())
            self._counts += counted.rows.sum(axis=0)
            if self._window is not None:
                self._window.add(counted)

    def totals(self) -> Totals:
        """Return what was counted since the start."""
        with self._lock:
            runs, tokens = self._tokens.totals()
            return Totals(runs, tokens, self._requests, self._counts.copy())

    def start_window(self, *, sample_every: int | None = None) -> None:
        """Begin to keep the counts of each request whose routing is read; what was kept is dropped.

        Args:
            sample_every: Another rate than that of the counters until `stop_window`; None for this.
        """
        with self._lock:
            self._window = WindowRecorder(self.reader.layout, self.digest)
            every = self._sample_every if sample_every is None else sample_every
            self._turns = _Turns(every, self._seed)

    def stop_window(self) -> None:
        """Keep no more; what was kept can still be dumped."""
        with self._lock:
            if self._window is not None:
                self._window.stop()
            self._turns = _Turns(self._sample_every, self._seed)

    def dump_window(self) -> RecordedWindow | None:
        """Return what was kept so far; None if nothing was ever started."""
        with self._lock:
            window = None if self._window is None else self._window.copy()
        # Joined without the lock, which every answer takes.
        return None if window is None else window.recorded()

    def families(self) -> tuple[Family, ...]:
        """Return what was counted, as metrics."""
        totals = self.totals()
        columns = self.reader.layout.columns

        def of_layers(name: str, help: str, value: Mapping[str, float]) -> Family:
            series = [Series({**self._labels, "layer": path}, one) for path, one in value.items()]
            return Family(name, help, "counter", tuple(series))

        paths = self.reader.layout.paths()
        tokens = dict(zip(paths, totals.tokens, strict=True))
        sampled = {one.layer.path: float(totals.counts[one.tokens]) for one in columns}
        nonfinite = {one.layer.path: float(totals.counts[one.nonfinite]) for one in columns}
        requests = Series(self._labels, totals.requests)
        info = Series({**self._labels, "digest": self.digest}, 1)
        return (
            Family("moh_package_info", "The package: digest of its model.onnx.", "gauge", (info,)),
            of_layers(
                "moh_routed_tokens_total", "Tokens that a layer routed, without padding.", tokens
            ),
            Family(
                "moh_sampled_requests_total",
                "Requests whose routing was read.",
                "counter",
                (requests,),
            ),
            of_layers(
                "moh_sampled_tokens_total",
                "Tokens of the requests whose routing was read: what activations, gate mass and"
                " margins are of.",
                sampled,
            ),
            self._family(
                "moh_head_activations_total",
                "Pairs of a token and a head that is on for it.",
                self._activations(totals),
            ),
            self._family(
                "moh_gate_mass_total",
                "Sum of the gates' absolute values.",
                self._masses(totals),
            ),
            of_layers("moh_nonfinite_gates_total", "Gates that are NaN or infinite.", nonfinite),
            Family(
                "moh_router_margin",
                "How far the scores of the last chosen and the first unchosen head are apart.",
                "histogram",
                tuple(self._margins(totals)),
            ),
        )

    def close(self) -> None:
        """Hold nothing but memory."""

    @staticmethod
    def _family(name: str, help: str, series: Iterator[Series]) -> Family:
        return Family(name, help, "counter", tuple(series))

    def _activations(self, totals: Totals) -> Iterator[Series]:
        for one in self.reader.layout.columns:
            yield from self._by_head(one, totals.counts[one.on])

    def _by_head(self, columns: LayerColumns, values: Counts) -> Iterator[Series]:
        labels = {**self._labels, "layer": columns.layer.path}
        if not self._per_head:
            yield Series(labels, float(values.sum()))
            return
        for head, value in enumerate(values):
            yield Series({**labels, "head": str(head)}, float(value))

    def _masses(self, totals: Totals) -> Iterator[Series]:
        for one in self.reader.layout.columns:
            mass, shared = totals.counts[one.mass], one.layer.num_shared_heads
            # Without a known border between the two, all is routed.
            parts = {"shared": slice(shared or 0), "routed": slice(shared or 0, None)}
            for kind, part in parts.items():
                first = part.start or 0
                for series in self._by_head(one, mass[part]):
                    labels = {**series.labels, "kind": kind}
                    if "head" in labels:
                        labels["head"] = str(first + int(labels["head"]))
                    yield Series(labels, series.value)

    def _margins(self, totals: Totals) -> Iterator[Series]:
        for one in self.reader.layout.columns:
            if one.layer.has_margins:
                below = np.cumsum(totals.counts[one.margins])
                buckets = {
                    edge: round(count) for edge, count in zip(MARGIN_EDGES, below, strict=True)
                }
                labels = {**self._labels, "layer": one.layer.path}
                yield Series(labels, float(totals.counts[one.margin_sum]), buckets)


def _of_the_same_tokens(values: LayerValues) -> tuple[str, ...]:
    """Return the gates and, where a MoHRouter makes these very gates, what it reads."""
    router = values.router
    if router is None or router.gates != values.gates:
        return (values.gates,)
    return (values.gates, *router.logits.values())


class _Turns:
    """Draws one run of each so many. Threads may ask at the same time.

    Args:
        every: How many; 0 draws none.
        seed: Of the drawing.
    """

    def __init__(self, every: int, seed: int | None) -> None:
        draw = random.Random(seed)
        # A beat of as many runs as these is met by no traffic but one made for it.
        self._period = max(1, every * _DRAWN)
        starts = range(0, every * _DRAWN, every) if every else ()
        self._chosen = frozenset(start + draw.randrange(every) for start in starts)
        # One call of C: no two threads get the same number.
        self._numbers = itertools.count()

    def next(self) -> bool:
        """Tell whether the run that begins is the one."""
        return next(self._numbers) % self._period in self._chosen


_DRAWN = 1009
