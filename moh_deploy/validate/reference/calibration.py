"""Read the inputs that static scales are made of, apart from those that judge them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.input_sets import batch_dim, input_sets, num_samples, picked
from moh_deploy.validate.reference.samples import recorded_samples

_Inputs = Mapping[str, Array]


def calibration_runs(
    package: OnnxPackage, paths: Sequence[Path], judged: Sequence[Path]
) -> list[_Inputs]:
    """Return the samples in files, in batches of the example's size.

    Args:
        judged: npz files, or directories of them, that the calibrated package is judged on, besides
            the recorded runs.

    Raises:
        ConfigError: A file does not fit the model, a directory is empty, there are no files, or a
            sample would be judged that was calibrated on.
    """
    if not paths:
        raise ConfigError(
            "static scales are made of inputs, and none are given.",
            hint="Give samples of your data that judge nothing: --inputs FILE.npz.",
        )
    manifest = package.manifest
    sets = input_sets(package, paths, ())
    known = {
        digest: found.name
        for found in sets
        for digest in _digests(manifest, found.inputs, found.sizes)
    }
    judges = [
        (f"recorded run {sample.label}", sample.known.inputs, sample.known.sizes)
        for sample in recorded_samples(package.vectors)
    ]
    if judged:
        judges += [
            (found.name, found.inputs, found.sizes) for found in input_sets(package, judged, ())
        ]
    for name, inputs, sizes in judges:
        for digest in _digests(manifest, inputs, sizes):
            if digest in known:
                raise ConfigError(
                    f"{known[digest]} holds a sample of {name}, which judges the package: scales"
                    " would be judged on what they were made of.",
                    hint="Calibrate on other samples.",
                )
    return [run for found in sets for run in _batches(manifest, found.inputs, found.sizes)]


def _batches(manifest: Manifest, inputs: _Inputs, sizes: Mapping[str, int]) -> Iterator[_Inputs]:
    dim = batch_dim(manifest)
    if dim is None:
        yield inputs
        return
    for start in range(0, sizes[dim], manifest.dims[dim]):
        pick = range(start, min(start + manifest.dims[dim], sizes[dim]))
        yield picked(manifest.inputs, inputs, dim, pick)


def _digests(manifest: Manifest, inputs: _Inputs, sizes: Mapping[str, int]) -> Iterator[bytes]:
    """Yield a digest of each sample."""
    dim = batch_dim(manifest)
    for index in range(num_samples(manifest, sizes)):
        sample = inputs if dim is None else picked(manifest.inputs, inputs, dim, [index])
        digest = hashlib.sha256()
        for name in sorted(sample):
            digest.update(sample[name].tobytes())
        yield digest.digest()
        if dim is None:
            return
