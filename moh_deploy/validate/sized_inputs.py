"""Make inputs of the sizes that are asked for: recorded ones if there are any, else random ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage, TensorInfo
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.input_sets import RECORDED_INPUTS, InputSet
from moh_deploy.validate.user_vectors import check_ranges

RANDOM = "random"

Sizes = Mapping[str, Sequence[int]]
"""Name of a dynamic dimension to the sizes that are asked for."""


def sized_inputs(package: OnnxPackage, sizes: Sizes) -> list[InputSet]:
    """Return inputs for each combination of sizes.

    A dimension that is not named has the example's size. Each element of a random input is one of
    the recorded input's, drawn by chance: token numbers stay in the vocabulary, open masks open.

    Args:
        package: The package; it has recorded inputs.
        sizes: What is asked for.

    Raises:
        ConfigError: A dimension is unknown, or has a size that the model does not take.
    """
    example = check_inputs(package.manifest.inputs, package.vectors[0].inputs)
    for name, asked in sizes.items():
        if name not in example:
            known = ", ".join(f"'{one}'" for one in example) or "none: every size is fixed"
            raise ConfigError(
                f"the model has no dynamic dimension '{name}', it has {known}.",
                hint=did_you_mean(name, example) or None,
            )
        for size in asked:
            if size < 0:
                raise ConfigError(f"dimension '{name}' is to be {size}, expected at least 0.")
    return [
        _inputs_at(package, {**example, **dict(zip(sizes, one, strict=True))})
        for one in product(*sizes.values())
    ]


def batch_dim(manifest: Manifest) -> str | None:
    """Return the dimension that counts samples: `batch`, or else what axis 0 of the first input is;
    None if that is a fixed size."""
    if "batch" in manifest.dims:
        return "batch"
    first = _first_axis(manifest)
    return first if isinstance(first, str) and first in manifest.dims else None


def num_samples(manifest: Manifest, sizes: Mapping[str, int]) -> int:
    """Return the number of samples in one run, by the batch dimension; 1 where there is none."""
    name, first = batch_dim(manifest), _first_axis(manifest)
    if name is not None:
        return sizes[name]
    return first if isinstance(first, int) else 1


def known_size(axis: int | str, sizes: Mapping[str, int]) -> int | None:
    """Return the size of an axis of an output; None where nothing tells."""
    if isinstance(axis, int):
        return axis
    try:
        return DimExpr.parse(axis, place="output").evaluate(sizes)
    except (ConfigError, KeyError):
        return None


def _first_axis(manifest: Manifest) -> int | str | None:
    shapes = [one.shape for one in manifest.inputs if one.shape]
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
    example = package.vectors[0].inputs
    inputs = {}
    for spec in specs:
        shape = [_axis(spec, axis, sizes) for axis in spec.shape]
        # An example of size 0 holds nothing to draw from.
        values = example[spec.name].reshape(-1)
        values = values if values.size else np.zeros(1, values.dtype)
        inputs[spec.name] = values[rng.integers(values.size, size=shape)]
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
