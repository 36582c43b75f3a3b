"""The inputs that a package is measured on: recorded ones, the user's, or random ones of a size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage, TensorInfo
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.reference.samples import check_ranges, npz_files, read_user_vectors
from moh_deploy.validate.reference.valid_tokens import is_additive, mask_like, valid_keys

RECORDED_INPUTS = "recorded"


@dataclass(frozen=True)
class InputSet:
    """Inputs of one run of the model."""

    name: str  # The file, `recorded` or `random`
    sizes: dict[str, int]
    inputs: dict[str, Array]
    weight: float  # How often this run counts


def input_sets(
    package: OnnxPackage, paths: Sequence[Path], weights: Sequence[float]
) -> list[InputSet]:
    """Return the inputs in the files; without files, those of the run at the example's sizes.

    Args:
        paths: npz files, as `moh-deploy run` takes them, or directories of them.
        weights: One a file; without, each counts 1.

    Raises:
        ConfigError: A file does not fit the model, or a directory is empty; weights do not fit the
            files.
    """
    files = npz_files(paths)
    weights = checked_weights(files, weights)
    if files:
        read = [read_user_vectors(path, package.manifest) for path in files]
        return [
            InputSet(str(path), user_vectors.sizes, user_vectors.inputs, weight)
            for path, user_vectors, weight in zip(files, read, weights, strict=True)
        ]
    if not package.vectors:
        raise ConfigError(
            f"{package.root} holds no recorded inputs.", hint="Give some: --inputs FILE.npz."
        )
    # The first recorded run is the one at the example's sizes.
    recorded = package.vectors[0]
    return [InputSet(RECORDED_INPUTS, recorded.sizes, recorded.inputs, 1.0)]


def checked_weights(files: Sequence[Path], weights: Sequence[float]) -> Sequence[float]:
    """Return a weight for each file: those given, or 1 each.

    Raises:
        ConfigError: There are others than files, or one is no number above 0.
    """
    weights = weights or [1.0] * len(files)
    if len(weights) != len(files):
        raise ConfigError(
            f"weights given: {len(weights)}, files of inputs: {len(files)}; expected one weight for"
            " each file, or none."
        )
    for weight in weights:
        # This form refuses NaN, too.
        if not 0 < weight < float("inf"):
            raise ConfigError(f"a weight is {weight:g}, expected a number above 0.")
    return weights


RANDOM = "random"

Sizes = Mapping[str, Sequence[int]]
"""Name of a dynamic dimension to the sizes that are asked for."""


def sized_inputs(package: OnnxPackage, sizes: Sizes) -> list[InputSet]:
    """Return inputs for each combination of sizes.

    A dimension that is not named has the example's size. Each element of a random input is one of
    the recorded input's, drawn by chance: token numbers stay in the vocabulary, open masks open.

    Raises:
        ConfigError: A dimension is unknown, or has a size that the model does not take.
    """
    example = check_inputs(package.manifest.inputs, package.vectors[0].inputs)
    for name, asked in sizes.items():
        if name not in example:
            known = ", ".join(f"'{name}'" for name in example) or "none: every size is fixed"
            raise ConfigError(
                f"the model has no dynamic dimension '{name}', it has {known}.",
                hint=did_you_mean(name, example) or None,
            )
        for size in asked:
            if size < 0:
                raise ConfigError(f"dimension '{name}' is to be {size}, expected at least 0.")
    return [
        _inputs_at(package, {**example, **dict(zip(sizes, size, strict=True))})
        for size in product(*sizes.values())
    ]


def batch_dim(manifest: Manifest) -> str | None:
    """Return the dimension that counts samples: `batch`, or else what axis 0 of the first input is;
    None if that is a fixed size."""
    if "batch" in manifest.dims:
        return "batch"
    first = _first_axis(manifest)
    return first if isinstance(first, str) and first in manifest.dims else None


def num_samples(manifest: Manifest, sizes: Mapping[str, int]) -> int:
    """Return the number of samples in a run, by the batch dimension; 1 without it."""
    name, first = batch_dim(manifest), _first_axis(manifest)
    if name is not None:
        return sizes[name]
    return first if isinstance(first, int) else 1


def picked(
    specs: Sequence[TensorInfo], inputs: Mapping[str, Array], dim: str, pick: Sequence[int]
) -> dict[str, Array]:
    """Return what inputs hold at some places along a dimension."""
    found = {}
    for spec in specs:
        array = inputs[spec.name]
        for axis, size in enumerate(spec.shape):
            # [..., dim, ...] to [..., len(pick), ...].
            array = np.take(array, pick, axis=axis) if size == dim else array
        found[spec.name] = array
    return found


def known_size(axis: int | str, sizes: Mapping[str, int]) -> int | None:
    """Return the size of an axis of an output; None where nothing tells."""
    if isinstance(axis, int):
        return axis
    try:
        return DimExpr.parse(axis, place="output").evaluate(sizes)
    except (ConfigError, KeyError):
        return None


def _first_axis(manifest: Manifest) -> int | str | None:
    shapes = [info.shape for info in manifest.inputs if info.shape]
    return shapes[0][0] if shapes else None


def _inputs_at(package: OnnxPackage, sizes: dict[str, int]) -> InputSet:
    specs = package.manifest.inputs
    for recorded in package.vectors:
        # Recorded inputs first: random ones may choose other heads than real ones do.
        if check_inputs(specs, recorded.inputs) == sizes:
            return InputSet(RECORDED_INPUTS, sizes, recorded.inputs, 1.0)
    check_ranges(sizes, package.manifest)
    # The same inputs in every run: figures are compared with those of other runs.
    rng = np.random.default_rng(0)
    inputs = {}
    for spec in specs:
        example = package.vectors[0].inputs[spec.name]
        shape = [_axis(spec, axis, sizes) for axis in spec.shape]
        # A mask that is added to scores is the same for every query of a random input, too: what is
        # drawn are the keys that it leaves open.
        keys = None
        if spec.name == package.manifest.valid_tokens and is_additive(spec.dtype, spec.shape):
            keys = valid_keys(example) if example.size else None
        try:
            if keys is None or isinstance(keys, str):
                # An example of size 0 holds nothing to draw from.
                values = example.reshape(-1) if example.size else np.zeros(1, example.dtype)
                inputs[spec.name] = values[rng.integers(values.size, size=shape)]
            else:
                places = rng.integers(keys.size, size=(shape[0], shape[-1]))
                inputs[spec.name] = mask_like(keys.reshape(-1)[places], example, shape[1:-1])
        # numpy raises the others for what no machine has room for.
        except (MemoryError, OverflowError, ValueError) as error:
            raise ConfigError(
                f"input '{spec.name}' of the sizes {shape} does not fit into memory."
            ) from error
    return InputSet(RANDOM, sizes, inputs, 1.0)


def _axis(spec: TensorInfo, axis: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    # What is no expression of one name counts as a name of its own, as when inputs are checked.
    size = sizes.get(axis)
    if size is None:
        size = DimExpr.parse(axis, place=f"input '{spec.name}'").evaluate(sizes)
    if size < 0:
        raise ConfigError(f"input '{spec.name}' would have size {size} on axis '{axis}'.")
    return size
