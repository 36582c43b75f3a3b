"""Bring manifest and recorded runs of a decoder whose caches grow to caches that are buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from moh_deploy.config.dims import DimExpr
from moh_deploy.package.manifest import (
    CacheBuffer,
    CachesInPlace,
    LayerInfo,
    Manifest,
    TensorInfo,
)
from moh_deploy.package.vectors import VectorSet
from moh_deploy.system.npz import BFLOAT16, Array

BUFFER = "buffer"
"""The dimension of a buffer's places."""

_ROOMS = (3, 0, 5, 1)
"""Places that recorded runs leave free, by turns: none is a case of its own."""


def past_length(caches: CachesInPlace, known: Mapping[str, int]) -> int:
    """Return how many places were filled before a call.

    Args:
        known: Sizes of dimensions, and the value of the input that says it, if there is one.
    """
    total, _, new = caches.past_length.partition(" - ")
    return known[total] - (_size(new, known) if new else 0)


def new_length(caches: CachesInPlace, known: Mapping[str, int]) -> int:
    """Return how many tokens a call adds; see `past_length`."""
    return _size(caches.new_length, known)


def _size(dim: str | int, known: Mapping[str, int]) -> int:
    return int(dim) if isinstance(dim, int) or dim.isdecimal() else known[dim]


def in_buffers(
    manifest: Manifest, vectors: Sequence[VectorSet], caches: CachesInPlace
) -> tuple[Manifest, tuple[VectorSet, ...]]:
    """Return what says the same of the model with its caches in place; nothing is proven of it.

    Args:
        manifest: Of the model whose caches grow.
        vectors: Its recorded runs. The room of their buffers is filled with numbers that would
            show in the outputs if anybody read them.
    """
    axes = {name: one.axis for one in caches.buffers for name in (one.past, one.present)}
    inputs = tuple(_with_places(one, axes) for one in manifest.inputs)
    tells = _input_that_tells(caches, manifest)
    if tells is not None:
        inputs += (TensorInfo(tells, "int64", ()),)
    left = set(_names(inputs)) - {BUFFER}
    runs = tuple(
        _in_buffers(one, caches, left=left, tells=tells, room=_ROOMS[number % len(_ROOMS)])
        for number, one in enumerate(vectors)
    )
    dims = {name: size for name, size in manifest.dims.items() if name in left}
    changed = replace(
        manifest,
        inputs=inputs,
        outputs=tuple(_with_places(one, axes) for one in manifest.outputs),
        dims={**dims, BUFFER: runs[0].sizes[BUFFER]},
        # What is limited together with the cache's length is limited by `most_tokens`.
        dim_ranges={name: one for name, one in manifest.dim_ranges.items() if name in left},
        dim_sums=tuple(one for one in manifest.dim_sums if left.issuperset(one.dims)),
        layers=tuple(_without_lost_ranges(layer, left) for layer in manifest.layers),
        caches=caches,
        tuning=None,
        proof=None,
    )
    return changed, runs


def _with_places(tensor: TensorInfo, axes: Mapping[str, int]) -> TensorInfo:
    if tensor.name not in axes:
        return tensor
    shape = [BUFFER if at == axes[tensor.name] else dim for at, dim in enumerate(tensor.shape)]
    return replace(tensor, shape=tuple(shape))


def _names(inputs: Sequence[TensorInfo]) -> Iterator[str]:
    for one in inputs:
        for dim in one.shape:
            if isinstance(dim, str):
                yield DimExpr.parse(dim, place=f"input '{one.name}'").name


def _input_that_tells(caches: CachesInPlace, manifest: Manifest) -> str | None:
    """Return the name of the input that says how much is filled; None where sizes do."""
    total = caches.past_length.partition(" - ")[0]
    return None if total in manifest.dims else total


def _without_lost_ranges(layer: LayerInfo, left: set[str]) -> LayerInfo:
    """Take from a layer what it does at sizes that no input has any more."""
    kept = tuple(one for one in layer.ranges if left.issuperset(one.size.split("*")))
    return replace(layer, ranges=kept)


def _in_buffers(
    run: VectorSet, caches: CachesInPlace, *, left: set[str], tells: str | None, room: int
) -> VectorSet:
    inputs, outputs = dict(run.inputs), dict(run.outputs)
    places, past = 0, 0
    for one in caches.buffers:
        before, after = run.inputs[one.past], run.outputs[one.present]
        past, places = before.shape[one.axis], after.shape[one.axis] + room
        inputs[one.past] = _buffer(one, before, after, places)
        # What was not written stays as it was.
        behind = _part(inputs[one.past], one.axis, after.shape[one.axis], places)
        outputs[one.present] = np.concatenate((after, behind), axis=one.axis)
    if tells is not None:
        inputs[tells] = np.asarray(past, np.int64)
    sizes = {name: size for name, size in run.sizes.items() if name in left}
    return replace(run, sizes={**sizes, BUFFER: places}, inputs=inputs, outputs=outputs)


def _buffer(one: CacheBuffer, filled: Array, alike: Array, places: int) -> Array:
    """Return a cache with room behind what is filled: numbers as in `alike`, in another order."""
    free = places - filled.shape[one.axis]
    other = np.take(np.flip(alike, one.axis), np.arange(free) % alike.shape[one.axis], one.axis)
    # Of the other sign: one token turned around is that token.
    if other.dtype.kind == "f" or other.dtype == BFLOAT16:
        other = -other
    buffer: Array = np.concatenate((filled, other), axis=one.axis)
    return buffer


def _part(array: Array, axis: int, begin: int, end: int) -> Array:
    part: Array = np.take(array, np.arange(begin, end), axis)
    return part
