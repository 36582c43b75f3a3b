"""Cut files of inputs into single samples, so that a corpus keeps as little as it can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest
from moh_deploy.system.npz import Array
from moh_deploy.validate.samples import Sample
from moh_deploy.validate.sized_inputs import batch_dim
from moh_deploy.validate.user_vectors import check_ranges


def cut_into_samples(manifest: Manifest, files: Sequence[Sample]) -> Iterator[Sample]:
    """Yield each file's inputs, cut along the dimension that counts samples if there is one.

    `images.npz[3]` is the fourth of a file.
    """
    dim = batch_dim(manifest)
    for file in files:
        if dim is None or not _takes_one(manifest, dim):
            yield file
            continue
        for index in range(file.known.sizes[dim]):
            yield _taken(manifest, file, dim, index)


def _takes_one(manifest: Manifest, dim: str) -> bool:
    """Tell whether the model takes one sample, and every axis of samples is `dim` itself."""
    try:
        # A trace may be good for batches of two and more only.
        check_ranges({dim: 1}, manifest)
    except ConfigError:
        return False
    axes = [axis for spec in manifest.inputs for axis in spec.shape if isinstance(axis, str)]
    return all(axis == dim or dim not in axis for axis in axes)


def _taken(manifest: Manifest, file: Sample, dim: str, index: int) -> Sample:
    inputs = {
        spec.name: _cut(file.known.inputs[spec.name], spec.shape, dim, index)
        for spec in manifest.inputs
    }
    # Expected outputs go: the corpus has what the function bodies or the original compute.
    known = replace(file.known, sizes={**file.known.sizes, dim: 1}, inputs=inputs, outputs={})
    name = file.label if file.file is None else file.file.name
    return Sample(known, f"{name}[{index}]", file.file)


def _cut(array: Array, shape: Sequence[int | str], dim: str, index: int) -> Array:
    for axis, size in enumerate(shape):
        if size == dim:
            array = np.take(array, [index], axis=axis)
    return array
