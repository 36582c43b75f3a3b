"""Read what routers did in a run: gates and logits become a row of counts for each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moh_deploy.ops.routers import form_named
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage
from moh_deploy.serving.telemetry.layout import (
    MARGIN_EDGES,
    CountedLayer,
    CountLayout,
)
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values

Counts = NDArray[np.float64]
"""Rows of a `CountLayout`: [requests, columns]. Sums of whole numbers are exact up to 2**53."""


@dataclass(frozen=True)
class RequestCounts:
    """The counts of one run.

    Attributes:
        rows: One for each request; a single one where the requests cannot be told apart.
        requests: How many requests each row is of.
    """

    rows: Counts
    requests: NDArray[np.int64]


@dataclass(frozen=True)
class RoutingReader:
    """Knows where a package's routers show what they do.

    Attributes:
        layout: The layers that are counted. Gates that no input changes are not: there is nothing
            to see.
        values: Where each of them has its gates and logits.
        valid_tokens: The input that is 0 for padding, [batch, tokens]; None where there is none.
    """

    layout: CountLayout
    values: tuple[LayerValues, ...]
    valid_tokens: str | None

    @classmethod
    def of(cls, package: OnnxPackage) -> RoutingReader:
        """Find the values in a package's graph; its weights are not read."""
        manifest: Manifest = package.manifest
        pairs = zip(manifest.layers, layer_values(package), strict=True)
        moving = [
            (layer, values) for layer, values in pairs if not form_named(layer.router).is_constant
        ]
        layers = tuple(
            CountedLayer.of(layer, has_margins=_has_margins(layer, values))
            for layer, values in moving
        )
        found = tuple(values for _, values in moving)
        return cls(CountLayout(layers), found, manifest.valid_tokens)

    @property
    def names(self) -> tuple[str, ...]:
        """The inner values that a run has to return."""
        names = [
            name
            for counted, one in zip(self.layout.layers, self.values, strict=True)
            for name in (one.gates, one.logits if counted.has_margins else None)
            if name is not None
        ]
        # Layers may share gates; a session is asked for each once.
        return tuple(dict.fromkeys(names))

    def mask(self, inputs: Mapping[str, Array]) -> BoolArray | None:
        """Return which tokens are valid, [batch, tokens]; None for all."""
        given = None if self.valid_tokens is None else inputs.get(self.valid_tokens)
        return None if given is None else given != 0

    def count(
        self, inputs: Mapping[str, Array], results: Mapping[str, Array], sizes: Sequence[int]
    ) -> RequestCounts:
        """Count what the routers did in a run.

        Args:
            inputs: Of the run.
            results: Name to array, for all `names`.
            sizes: Samples of each request in the run, in order.
        """
        mask = self.mask(inputs)
        # Layers of one kind are counted as one of as many samples more: numpy takes longer to be
        # called than to count.
        alike: dict[tuple[object, ...], list[int]] = {}
        for index, (layer, values) in enumerate(zip(self.layout.layers, self.values, strict=True)):
            kind = (layer.kind, _ranking(values), results[values.gates].shape)
            alike.setdefault(kind, []).append(index)
        # A layer over windows, say, has more rows than there are samples, in an order that nothing
        # tells: such a batch is counted as a whole.
        apart = all(results[one.gates].shape[0] == sum(sizes) for one in self.values)
        ends = np.cumsum(sizes)
        parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        parts = parts if apart else [slice(None)]
        rows = np.zeros((len(parts), self.layout.width))
        for indices in alike.values():
            by_sample = self._by_sample(indices, results, mask)  # [L, B, columns of one layer]
            for row, part in zip(rows, parts, strict=True):
                for index, counts in zip(indices, by_sample[:, part].sum(axis=1), strict=True):
                    row[self.layout.columns[index].all] = counts
        return RequestCounts(rows, np.full(len(parts), 1 if apart else len(sizes)))

    def _by_sample(
        self, indices: Sequence[int], results: Mapping[str, Array], mask: BoolArray | None
    ) -> Counts:
        """Return the counts of layers of one kind for each row of their gates."""
        values = [self.values[index] for index in indices]
        columns = self.layout.of_one(self.layout.layers[indices[0]])
        gates = _joined([results[one.gates] for one in values])  # [L * B, S, H]
        rows, tokens, _ = gates.shape
        # Of other axes than the mask are the gates of layers over windows or pooled tokens.
        valid = None
        if mask is not None and mask.shape == (rows // len(indices), tokens):
            valid = np.tile(mask, (len(indices), 1))
            gates = np.where(valid[..., None], gates, np.float32(0))
        found = np.zeros((rows, columns.end))
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
            found[:, columns.margins] = _histogram(margins, counted)
            found[:, columns.margin_sum] = margins.sum(axis=1, where=counted, dtype=np.float64)
        return found.reshape(len(indices), -1, columns.end)


def _has_margins(layer: LayerInfo, values: LayerValues) -> bool:
    """Tell whether a layer chooses among heads, and by scores that can be read."""
    if values.router is None or values.logits is None:
        return False
    top_k = int(values.router.attributes["top_k"])
    return 0 < top_k < layer.num_heads - (layer.num_shared_heads or 0)


def _ranking(values: LayerValues) -> tuple[object, ...]:
    """Return what layers have in common whose scores are made and compared in one way."""
    router = values.router
    return () if router is None else (router.form.name, router.attributes["top_k"])


def _margins(
    values: Sequence[LayerValues], results: Mapping[str, Array], tokens: tuple[int, int]
) -> NDArray[np.float32]:
    """Return how clear each token's choice is, [rows, S]; NaN where that is not known."""
    router = values[0].router
    assert router is not None
    logits = [results[one.logits] for one in values if one.logits is not None]
    joined = _joined([one.reshape(-1, one.shape[-1]) for one in logits])  # [tokens, R]
    # Logits that are not one row for each token of the gates tell nothing of these.
    if len(joined) != tokens[0] * tokens[1]:
        return np.full(tokens, np.nan, np.float32)
    top_k = int(router.attributes["top_k"])
    return router.form.margins(router.form.scores(joined), top_k).reshape(tokens)


def _joined(arrays: Sequence[Array]) -> NDArray[np.float32]:
    """Return arrays of one shape behind each other, in float32."""
    joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return joined.astype(np.float32, copy=False)


def _histogram(margins: NDArray[np.float32], counted: BoolArray) -> Counts:
    """Return how many of the margins that are counted are in each bin, [B, bins]."""
    batch, bins = len(margins), len(MARGIN_EDGES)
    # `left`: a margin that equals an edge is in the bin below it, as `le` has it.
    places = np.searchsorted(MARGIN_EDGES, margins, side="left")
    places += bins * np.arange(batch)[:, None]
    counts = np.bincount(places[counted], minlength=batch * bins)
    return counts.reshape(batch, bins).astype(np.float64)
