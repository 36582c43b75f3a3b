"""Read what routers did in a run: gates and logits become a row of counts for each request."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import ConfigError
from moh_deploy.ops.routers import form_named
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.system.bounded_file import open_archive
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import Array, BoolArray, read_npz, write_npz
from moh_deploy.system.staging import staged_file
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values

# Keep the counts of single requests for a while: `start | stop | dump`.
#
# Sums are not enough to tell chance from change: how much requests differ from each other is
# needed, too, since the tokens of one request are alike.

# What a window may hold in memory; it stops by itself when it is full.
MOST_BYTES = 256 * 2**20

_FORMAT = 1
_MEMBERS = ("rows", "requests", "seconds")


@dataclass(frozen=True)
class WindowAbout(Strict):
    """The header of a dump: which model, and which layers."""

    digest: str  # of the model.onnx that was served
    layers: tuple[CountedLayer, ...]  # which were counted
    is_cut: bool = False  # the window was full before it was stopped
    format_version: int = _FORMAT


@dataclass(frozen=True)
class RecordedWindow:
    """Counts request by request, in the order in which they were answered."""

    about: WindowAbout  # the model
    rows: Counts  # [rows, columns of the layout]
    # How many requests each row is of: more than one where a batch could not be told apart.
    requests: NDArray[np.int64]
    seconds: NDArray[np.float64]  # when each was answered, in seconds since 1970

    @property
    def layout(self) -> CountLayout:
        return CountLayout(self.about.layers)

    def arrays(self) -> dict[str, Array]:
        """Return what a dump holds."""
        about = TypeAdapter(WindowAbout).dump_json(self.about).decode()
        return {
            "about": np.array(about),
            # Half the size; counts of a request are exact up to 2**24.
            "rows": self.rows.astype(np.float32),
            "requests": self.requests,
            "seconds": self.seconds,
        }

    def write(self, path: Path) -> None:
        """Write an npz file, which `read_window` reads.

        Raises:
            PackageError: It cannot be written.
        """
        with staged_file(path) as partial:
            write_npz(partial, self.arrays())


class WindowRecorder:
    """Keeps rows until it is full or stopped; threads that add to it hold a lock."""

    def __init__(self, layout: CountLayout, digest: str) -> None:
        self._layout, self._digest = layout, digest
        self._kept: list[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]] = []
        self._bytes = 0
        self._is_open, self._is_cut = True, False

    def add(self, counts: Counts, requests: int) -> None:
        """Keep the rows of a run of so many requests."""
        rows = counts.astype(np.float32)
        if self._is_open and self._bytes + rows.nbytes > MOST_BYTES:
            self._is_open, self._is_cut = False, True
        if self._is_open:
            self._bytes += rows.nbytes
            each = np.full(len(rows), requests // len(rows))
            self._kept.append((rows, each, np.full(len(rows), time.time())))

    def stop(self) -> None:
        """Stop keeping further requests."""
        self._is_open = False

    def recorded(self) -> RecordedWindow:
        """Return what was kept so far; of a full window that takes a while."""
        kept = self._kept.copy()  # others may add to it meanwhile
        empty = np.zeros((0, self._layout.width), np.float32)
        return RecordedWindow(
            WindowAbout(self._digest, self._layout.layers, self._is_cut),
            np.concatenate([empty, *(rows for rows, _, _ in kept)], dtype=np.float64),
            np.concatenate([np.zeros(0, np.int64), *(requests for _, requests, _ in kept)]),
            np.concatenate([np.zeros(0), *(seconds for _, _, seconds in kept)]),
        )


def is_window(path: Path) -> bool:
    """Tell whether a file is a dump, by what it holds."""
    try:
        with open_archive(path, error=ConfigError, what="a dump") as archive:
            return {"about.npy", "rows.npy"} <= set(archive.namelist())
    except ConfigError:  # its reader says what is wrong with it
        return False


def read_window(path: Path) -> RecordedWindow:
    """Read a dumped window of requests.

    Raises:
        ConfigError: It is no dump, or contradicts itself.
    """
    arrays = read_npz(path, error=ConfigError)
    missing = [name for name in ("about", *_MEMBERS) if name not in arrays]
    if missing:
        raise ConfigError(
            f"{path} is no dump of a window: it has no member '{missing[0]}'.",
            hint="`dump` of a served model's telemetry writes such files.",
        )
    text = arrays["about"]
    if text.dtype.kind != "U" or text.ndim:
        raise ConfigError(f"{path}: 'about' is {text.dtype}{list(text.shape)}, expected a text.")
    source = f"{path}: 'about'"
    content = parse_json(str(text), source, error=ConfigError)
    about = decode_strict(WindowAbout, content, source, error=ConfigError)
    if about.format_version != _FORMAT:
        raise ConfigError(
            f"{path} is of format version {about.format_version}, expected {_FORMAT}."
        )
    numbers, count = [arrays[name] for name in _MEMBERS], arrays["requests"].size
    forms = [(array.dtype.kind, array.shape) for array in numbers]
    width = CountLayout(about.layers).width
    expected = [("f", (count, width)), ("i", (count,)), ("f", (count,))]
    if forms != expected:
        raise ConfigError(f"{path} contradicts itself: it holds {forms}, expected {expected}.")
    rows, requests, seconds = (array.astype(np.float64) for array in numbers)
    # A time in seconds reaches the upper limit in the year 5138.
    if not all(((array >= 0) & (array <= 1e11)).all() for array in (rows, requests, seconds)):
        raise ConfigError(f"{path} holds counts or times that are no numbers, negative or huge.")
    if (requests < 1).any():
        raise ConfigError(f"{path} holds a row of no request.")
    return RecordedWindow(about, rows, requests.astype(np.int64), seconds)


# What is counted of a request is one row of numbers. Rows add up: those of requests to a window,
# those of windows to a day. Each layer has the columns of
#   tokens      that went through its router, padding left out
#   nonfinite   gates that are NaN or infinite
#   on          for each head, tokens whose gate is not 0
#   mass        for each head, the sum of the gates' absolute values
#   margins     for each bin, tokens whose choice of heads is that clear
#   margin_sum  the sum of all margins
# Upper edges of the bins of margins: a margin is at most the edge of its bin.
MARGIN_EDGES = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)


@dataclass(frozen=True)
class CountedLayer(Strict):
    """A layer whose routing is counted."""

    path: str  # of the layer, as in the manifest
    num_heads: Annotated[int, Field(ge=1, le=2**16)]  # all of its heads
    # The first so many are meant to be on for every token; None where the router's form does not
    # tell.
    num_shared_heads: Annotated[int, Field(ge=0, le=2**16)] | None
    has_margins: bool  # the scores that its router ranks can be read


@dataclass(frozen=True)
class LayerColumns:
    """The columns of one layer in a row of counts; see above for each but `all` of them."""

    layer: CountedLayer
    tokens: int
    nonfinite: int
    margin_sum: int
    on: slice
    mass: slice
    margins: slice
    all: slice

    @classmethod
    def of(cls, layer: CountedLayer, first: int = 0) -> LayerColumns:
        """Lay out a layer whose first column is this."""
        on = first + 3
        mass = on + layer.num_heads
        margins = mass + layer.num_heads
        end = margins + len(MARGIN_EDGES)
        parts = slice(on, mass), slice(mass, margins), slice(margins, end)
        return cls(layer, first, first + 1, first + 2, *parts, all=slice(first, end))


@dataclass(frozen=True)
class CountLayout:
    """The columns of all layers, in the order in which these run."""

    layers: tuple[CountedLayer, ...]

    @cached_property
    def columns(self) -> tuple[LayerColumns, ...]:
        """The columns of each layer."""
        found: list[LayerColumns] = []
        for layer in self.layers:
            found.append(LayerColumns.of(layer, found[-1].all.stop if found else 0))
        return tuple(found)

    @property
    def width(self) -> int:
        """The number of columns of a row."""
        return self.columns[-1].all.stop if self.columns else 0


# Rows of a `CountLayout`: [requests, columns]. Sums of whole numbers are exact up to 2**53.
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class RoutingReader:
    """Knows where a package's routers show what they do."""

    # The layers that are counted. Gates that no input changes are not: there is nothing to see.
    layout: CountLayout
    values: tuple[LayerValues, ...]  # where each of them has its gates and logits
    # The mask of valid tokens, [batch, tokens], see `token_mask`; None for all.
    valid_tokens: str | None

    @classmethod
    def of(cls, package: OnnxPackage) -> RoutingReader:
        """Find the values in a package's graph; its weights are not read."""
        manifest: Manifest = package.manifest
        layers: list[CountedLayer] = []
        found: list[LayerValues] = []
        for layer, values in zip(manifest.layers, layer_values(package), strict=True):
            if form_named(layer.router).is_constant:
                continue
            heads, shared, has_margins = layer.num_heads, layer.num_shared_heads, False
            if values.router is not None and values.logits is not None:
                has_margins = 0 < int(values.router.attributes["top_k"]) < heads - (shared or 0)
            layers.append(CountedLayer(layer.path, heads, shared, has_margins))
            found.append(values)
        return cls(CountLayout(tuple(layers)), tuple(found), manifest.valid_tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The inner values that a run has to return."""
        names = [values.gates for values in self.values]
        pairs = zip(self.layout.layers, self.values, strict=True)
        names += [values.logits for layer, values in pairs if layer.has_margins and values.logits]
        # Layers may share gates; a session is asked for each once.
        return tuple(dict.fromkeys(names))

    def mask(self, inputs: Mapping[str, Array]) -> BoolArray | None:
        """Return which tokens are valid, [batch, tokens]; None for all."""
        if self.valid_tokens is None or (name := mask_input(self.valid_tokens)) not in inputs:
            return None
        return np.not_equal(inputs[name], marks_padding(self.valid_tokens))

    def count(
        self, inputs: Mapping[str, Array], results: Mapping[str, Array], sizes: Sequence[int]
    ) -> Counts:
        """Count what the routers did in a run.

        Args:
            results: Name to array, for all `names`.
            sizes: Samples of each request in the run, in order.

        Returns:
            A row for each request; a single one where the requests cannot be told apart.
        """
        mask = self.mask(inputs)
        # Layers of one kind are counted as one of as many samples more: numpy takes longer to be
        # called than to count.
        alike: dict[tuple[object, ...], list[int]] = {}
        for index, (layer, values) in enumerate(zip(self.layout.layers, self.values, strict=True)):
            columns = layer.num_heads, layer.num_shared_heads, layer.has_margins
            router = values.router
            ranking = () if router is None else (router.form.name, router.attributes["top_k"])
            kind = (*columns, ranking, results[values.gates].shape)
            alike.setdefault(kind, []).append(index)
        # A layer over windows, say, has more rows than there are samples, in an order that nothing
        # tells: such a batch is counted as a whole.
        apart = all(results[values.gates].shape[0] == sum(sizes) for values in self.values)
        ends = np.cumsum(sizes)
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        parts = parts if apart else [slice(None)]
        rows = np.zeros((len(parts), self.layout.width))
        for indices in alike.values():
            by_sample = self._by_sample(indices, results, mask)  # [L, B, columns of one layer]
            for row, part in zip(rows, parts, strict=True):
                for index, counts in zip(indices, by_sample[:, part].sum(axis=1), strict=True):
                    row[self.layout.columns[index].all] = counts
        return rows

    def _by_sample(
        self, indices: Sequence[int], results: Mapping[str, Array], mask: BoolArray | None
    ) -> Counts:
        """Return the counts of layers of one kind for each row of their gates."""
        values = [self.values[index] for index in indices]
        columns = LayerColumns.of(self.layout.layers[indices[0]])
        gates = _concatenated_float32([results[layer.gates] for layer in values])  # [L * B, S, H]
        rows, tokens, _ = gates.shape
        # Of other axes than the mask are the gates of layers over windows or pooled tokens.
        valid = None
        if mask is not None and mask.shape == (rows // len(indices), tokens):
            valid = np.tile(mask, (len(indices), 1))
            gates = np.where(valid[..., None], gates, np.float32(0))
        found = np.zeros((rows, columns.all.stop))
        found[:, columns.tokens] = tokens if valid is None else valid.sum(axis=1)
        mass = np.abs(gates).sum(axis=1, dtype=np.float64)  # [L * B, H]
        # One sum tells whether all are finite, and mostly all are.
        if not np.isfinite(mass.sum()):
            finite = np.isfinite(gates)
            found[:, columns.nonfinite] = (~finite).sum(axis=(1, 2))
            gates = np.where(finite, gates, np.float32(0))
            mass = np.abs(gates).sum(axis=1, dtype=np.float64)
        found[:, columns.mass] = mass
        found[:, columns.on] = (gates != 0).sum(axis=1)
        if columns.layer.has_margins:
            margins = _margins(values, results, (rows, tokens))
            counted = ~np.isnan(margins)
            if valid is not None:
                counted &= valid
            # `left`: a margin that equals an edge is in the bin below it, as `le` has it.
            bins = len(MARGIN_EDGES)
            places = np.searchsorted(MARGIN_EDGES, margins, side="left")
            places += bins * np.arange(rows)[:, None]
            in_bins = np.bincount(places[counted], minlength=rows * bins)
            found[:, columns.margins] = in_bins.reshape(rows, bins)
            found[:, columns.margin_sum] = margins.sum(axis=1, where=counted, dtype=np.float64)
        return found.reshape(len(indices), -1, columns.all.stop)


def _margins(
    values: Sequence[LayerValues], results: Mapping[str, Array], tokens: tuple[int, int]
) -> NDArray[np.float32]:
    """Return how clear each token's choice is, [rows, S]; NaN where that is not known."""
    router = values[0].router
    assert router is not None
    logits = [results[layer.logits] for layer in values if layer.logits is not None]
    joined = _concatenated_float32(
        [array.reshape(-1, array.shape[-1]) for array in logits]
    )  # [tokens, R]
    # Logits that are not one row for each token of the gates tell nothing of these.
    if len(joined) != tokens[0] * tokens[1]:
        return np.full(tokens, np.nan, np.float32)
    top_k = int(router.attributes["top_k"])
    return router.form.margins(router.form.scores(joined), top_k).reshape(tokens)


def _concatenated_float32(arrays: Sequence[Array]) -> NDArray[np.float32]:
    """Return arrays of one shape behind each other, in float32."""
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined.astype(np.float32, copy=False)
