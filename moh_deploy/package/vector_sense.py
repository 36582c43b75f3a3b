"""Refuse recorded runs that do not fit the model that the manifest describes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from moh_deploy.config.dims import size_at
from moh_deploy.errors import PackageError
from moh_deploy.package.fingerprint import NUMBERS
from moh_deploy.package.interface import TensorInfo
from moh_deploy.package.manifest import Manifest
from moh_deploy.package.manifest_sense import FLOATS
from moh_deploy.package.vectors import VectorSet
from moh_deploy.system.npz import Array


def check_vectors(path: Path, sets: Iterable[VectorSet], manifest: Manifest) -> None:
    """Check dtypes and shapes of everything that was recorded.

    Args:
        path: The file that they are from.

    Raises:
        PackageError: Something does not fit the manifest, or the sizes of its run.
    """
    for index, vector_set in enumerate(sets):
        for problem in _problems(vector_set, manifest):
            raise PackageError(f"{path}: set {index}: {problem}.")


def _problems(vectors: VectorSet, manifest: Manifest) -> Iterator[str]:
    for name, size in vectors.sizes.items():
        if name not in manifest.dims or not 0 <= size < 2**63:
            yield f"a run has size '{name}' of {size}, the manifest has {[*manifest.dims]}"
    for spec in manifest.inputs:
        yield from _tensor_problems("input", spec, vectors.inputs[spec.name], vectors.sizes)
    for spec in manifest.outputs:
        # Dynamic sizes of outputs are not checked: they may be any arithmetic of those of inputs.
        yield from _tensor_problems("output", spec, vectors.outputs[spec.name], {})
    for index, layer in enumerate(manifest.layers):
        gates, margins = vectors.gates[index], vectors.margins[index]
        if gates.ndim != 3 or gates.shape[2] != layer.num_heads or gates.dtype.name not in FLOATS:
            yield (
                f"gates {index} are {_shown(gates)}, expected floating-point numbers [batch,"
                f" sequence, {layer.num_heads}]"
            )
        # One margin a token: [B, S] of the gates' [B, S, H].
        elif margins.shape != gates.shape[:2] or margins.dtype.name not in FLOATS:
            yield (
                f"margins {index} are {_shown(margins)}, expected floating-point numbers"
                f" {list(gates.shape[:2])}"
            )
        yield from _inner_problems(index, gates, vectors, layer.num_heads)


def _inner_problems(index: int, gates: Array, vectors: VectorSet, num_heads: int) -> Iterator[str]:
    """Check what is recorded of a layer beside its gates, where it is."""
    for kind, recorded, least, most in (
        # [B, S, candidates] and [B, S, NUMBERS].
        ("scores", vectors.scores, 1, num_heads),
        ("attention", vectors.attention, NUMBERS, NUMBERS),
    ):
        array = recorded[index] if recorded else None
        if array is None:
            continue
        fits = array.dtype == "float32" and array.ndim == 3 and array.shape[:2] == gates.shape[:2]
        if not fits or not least <= array.shape[2] <= most:
            numbers = str(least) if least == most else f"{least} to {most}"
            yield (
                f"{kind} {index} are {_shown(array)}, expected float32 numbers"
                f" {list(gates.shape[:2])} and {numbers} more"
            )


def _tensor_problems(
    kind: str, spec: TensorInfo, array: Array, sizes: dict[str, int]
) -> Iterator[str]:
    fits = array.dtype.name == spec.dtype and array.ndim == len(spec.shape)
    # A run need not have a size of its own for every dimension.
    fits &= all(
        size_at(expected, sizes) in (None, found)
        for expected, found in zip(spec.shape, array.shape, strict=False)
    )
    if not fits:
        expected = f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"
        at = f" at {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""
        yield f"{kind} '{spec.name}' is {_shown(array)}, expected {expected}{at}"


def _shown(array: Array) -> str:
    return f"{array.dtype}{list(array.shape)}"
