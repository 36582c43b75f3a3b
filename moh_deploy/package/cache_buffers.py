"""Bring manifest and recorded runs of a decoder whose caches grow to caches that are buffers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from moh_deploy.config.dims import DimExpr
from moh_deploy.package.interface import CachesInPlace, TensorInfo
from moh_deploy.package.manifest import Manifest
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
    axes = {
        name: buffer.axis for buffer in caches.buffers for name in (buffer.past, buffer.present)
    }
    inputs = tuple(_with_places(info, axes) for info in manifest.inputs)
    # The dimension of caches is gone, and its name may be that of the input that tells.
    left = {
        DimExpr.parse(dim, place=f"input '{info.name}'").name
        for info in inputs
        for dim in info.shape
        if isinstance(dim, str)
    } - {BUFFER}
    tells = _input_that_tells(caches, left)
    if tells is not None:
        inputs += (TensorInfo(tells, "int64", ()),)
    runs = tuple(
        _in_buffers(vector_set, caches, left=left, tells=tells, room=_ROOMS[number % len(_ROOMS)])
        for number, vector_set in enumerate(vectors)
    )
    dims = {name: size for name, size in manifest.dims.items() if name in left}
    changed = replace(
        manifest,
        inputs=inputs,
        outputs=tuple(_with_places(output, axes) for output in manifest.outputs),
        dims={**dims, BUFFER: runs[0].sizes[BUFFER]},
        # What is limited together with the cache's length is limited by `most_tokens`.
        dim_ranges={
            name: dim_range for name, dim_range in manifest.dim_ranges.items() if name in left
        },
        dim_sums=tuple(dim_sum for dim_sum in manifest.dim_sums if left.issuperset(dim_sum.dims)),
        # What a layer does at sizes that no input has any more.
        layers=tuple(
            replace(
                layer,
                ranges=tuple(r for r in layer.ranges if left.issuperset(r.size.split("*"))),
            )
            for layer in manifest.layers
        ),
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


def _input_that_tells(caches: CachesInPlace, dims: Collection[str]) -> str | None:
    """Return the name of the input that says how much is filled; None where sizes do.

    Args:
        dims: Those of the package whose caches are in place.
    """
    total = caches.past_length.partition(" - ")[0]
    return None if total in dims else total


def _in_buffers(
    run: VectorSet, caches: CachesInPlace, *, left: set[str], tells: str | None, room: int
) -> VectorSet:
    inputs, outputs = dict(run.inputs), dict(run.outputs)
    places, past = 0, 0
    for buffer in caches.buffers:
        before, after = run.inputs[buffer.past], run.outputs[buffer.present]
        past, places = before.shape[buffer.axis], after.shape[buffer.axis] + room
        # Room behind what is filled: numbers as in `after`, in another order and of the other sign,
        # since one token turned around is that token.
        turned = np.flip(after, buffer.axis)
        other = np.take(turned, np.arange(places - past) % turned.shape[buffer.axis], buffer.axis)
        if other.dtype.kind == "f" or other.dtype == BFLOAT16:
            other = -other
        inputs[buffer.past] = np.concatenate((before, other), axis=buffer.axis)
        outputs[buffer.present] = _written(inputs[buffer.past], after, buffer.axis)
    if tells is not None:
        inputs[tells] = np.asarray(past, np.int64)
    sizes = {name: size for name, size in run.sizes.items() if name in left}
    return replace(run, sizes={**sizes, BUFFER: places}, inputs=inputs, outputs=outputs)


def _written(buffer: Array, filled: Array, axis: int) -> Array:
    """Return a buffer whose first places hold other tokens; what is behind stays as it was."""
    behind = np.arange(filled.shape[axis], buffer.shape[axis])
    written: Array = np.concatenate((filled, np.take(buffer, behind, axis)), axis=axis)
    return written


def without_room(inputs: Mapping[str, Array], manifest: Manifest) -> dict[str, Array]:
    """Return a package's inputs as its original takes them: what is filled of caches in place."""
    caches = manifest.caches
    if caches is None:
        return dict(inputs)
    past = past_length(caches, _known(inputs, manifest))
    cut = {
        buffer.past: np.take(inputs[buffer.past], np.arange(past), buffer.axis)
        for buffer in caches.buffers
    }
    tells = _input_that_tells(caches, manifest.dims)
    return {name: cut.get(name, array) for name, array in inputs.items() if name != tells}


def in_given_buffers(
    outputs: Mapping[str, Array], inputs: Mapping[str, Array], manifest: Manifest
) -> dict[str, Array]:
    """Return outputs of the original as a package gives them: caches in the buffers of its inputs.

    Args:
        outputs: Name to array; caches are left out of some.
        inputs: Of the package.
    """
    made = dict(outputs)
    for buffer in manifest.caches.buffers if manifest.caches is not None else ():
        if buffer.present in outputs:
            after = outputs[buffer.present]
            made[buffer.present] = _written(inputs[buffer.past], after, buffer.axis)
    return made


def _known(inputs: Mapping[str, Array], manifest: Manifest) -> dict[str, int]:
    """Return the sizes of dimensions, and the numbers that inputs without axes hold."""
    found = {name: int(array) for name, array in inputs.items() if array.ndim == 0}
    for spec in manifest.inputs:
        for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True):
            if isinstance(dim, str):
                expression = DimExpr.parse(dim, place=f"input '{spec.name}'")
                found[expression.name] = expression.solve(size) or 0
    return found


def with_dtypes(manifest: Manifest, dtypes: Mapping[str, str]) -> Manifest:
    """Return the manifest with other dtypes of some inputs and outputs, by name."""

    def changed(tensors: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
        return tuple(
            replace(tensor, dtype=dtypes.get(tensor.name, tensor.dtype)) for tensor in tensors
        )

    return replace(manifest, inputs=changed(manifest.inputs), outputs=changed(manifest.outputs))


def rounded_to(run: VectorSet, dtypes: Mapping[str, str]) -> VectorSet:
    """Return a run whose values are rounded to other dtypes; see `with_dtypes`."""

    def changed(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: array.astype(_NUMPY.get(dtypes[name], dtypes[name])) if name in dtypes else array
            for name, array in arrays.items()
        }

    return replace(run, inputs=changed(run.inputs), outputs=changed(run.outputs))


_NUMPY = {"bfloat16": BFLOAT16}
