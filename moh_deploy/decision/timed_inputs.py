"""The inputs that all arms are timed on: real samples where there are enough of these sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.validate.accuracy.reading import LabelledData
from moh_deploy.validate.reference.input_sets import InputSet, input_sets, sized_inputs


def timed_inputs(
    base: OnnxPackage, data: LabelledData | None, sizes: Sequence[Mapping[str, int]]
) -> list[InputSet]:
    """Return inputs of each of the sizes; without, of the example's.

    The first samples of the labelled ones are taken, as many as the sizes ask for: heads that they
    open are real. Where other dimensions are asked for than they have, inputs are recorded ones, or
    drawn from these.

    Raises:
        ConfigError: A dimension is unknown, or of a size that the model does not take; or there is
            nothing to draw from.
    """
    return [_of_sizes(base, data, size) for size in sizes or [{}]]


def _of_sizes(base: OnnxPackage, data: LabelledData | None, sizes: Mapping[str, int]) -> InputSet:
    real = None if data is None else _real(base, data, sizes)
    if real is not None:
        return real
    if not base.vectors:
        raise ConfigError(
            f"{base.root} holds no recorded inputs, and no samples are of these sizes: there is"
            " nothing to time on.",
            hint="Give the plan samples of these sizes, or export the package again.",
        )
    if not sizes:
        return input_sets(base, [], [])[0]
    return sized_inputs(base, {name: [size] for name, size in sizes.items()})[0]


def _real(base: OnnxPackage, data: LabelledData, sizes: Mapping[str, int]) -> InputSet | None:
    """Return the first samples of the first file; None where they do not have these sizes."""
    samples, axis = data.datasets[0].samples, data.axis.size
    count = axis if isinstance(axis, int) else sizes.get(axis, base.manifest.dims.get(axis, 1))
    if count > len(samples):
        return None
    inputs = samples.taken(0, count, 0, samples.inputs)
    found = check_inputs(base.manifest.inputs, inputs)
    if any(found.get(name) != size for name, size in sizes.items()):
        return None
    names = [info.name for info in base.manifest.inputs]
    return InputSet(samples.name, found, {name: inputs[name] for name in names}, 1.0)
