"""Where skipping heads is predicted to break even for a package, at the batch sizes of traffic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moh_deploy.decision.cost.traffic import SizedRequests
from moh_deploy.decision.size_break_even import SizeBreakEven, along_lines
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.perf.cost_model.break_even import LayerBreakEven, break_even
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.suggest import shortened

# Where skipping heads was measured to break even, layer by layer: by the times of `tune`.

STANDARD_OPERATORS = "standard operators, every head open"


def tuned_break_even(manifest: Manifest) -> tuple[SizeBreakEven, ...]:
    """Return where each layer breaks even, and the whole model as it was chosen to run.

    Empty where the package was not tuned at two sizes of a dimension. Times are medians that have
    no intervals.
    """
    tuning = manifest.tuning
    if tuning is None or not tuning.layer_ms:
        return ()
    found: list[SizeBreakEven] = []
    named = zip((layer.path for layer in manifest.layers), tuning.layer_ms, strict=True)
    for name, times in (*named, ("all layers", tuning.model_ms)):
        gains = [_gain(time) for time in times]
        measured = [gain for gain in gains if gain is not None]
        if measured and len(measured) == len(tuning.sizes):
            found += _along(name, tuning.sizes, measured)
    return tuple(found)


def _along(
    name: str, sizes: tuple[dict[str, int], ...], gains: list[float]
) -> Iterator[SizeBreakEven]:
    return along_lines(name, STANDARD_OPERATORS, sizes, [(gain, gain, gain) for gain in gains])


def _gain(ms: Mapping[str, float]) -> float | None:
    """Return what the fastest way that skips heads saves of the time without; None if unknown."""
    skipping = [ms[name] for name in ("sparse", "projected", "chosen") if name in ms]
    return 1 - min(skipping) / ms["dense"] if skipping and "dense" in ms else None


def predicted_break_even(
    package: OnnxPackage, requests: Sequence[SizedRequests]
) -> tuple[LayerBreakEven, ...]:
    """Predict each layer of a package, and all together, from one sample to the largest batch.

    Other dimensions have the sizes of the package's example.

    Raises:
        ConfigError: The package has no dimension of its batch, or traffic has not that one.
        BackendError: ONNX Runtime cannot load it.
    """
    manifest = package.manifest
    batch = _batch_dim(manifest)
    dims = requests[0].sizes
    if batch is None or batch not in dims:
        what = "none of that kind" if batch is None else f"'{batch}'"
        raise ConfigError(
            f"package {package.root}: its batch is {what}, and traffic has"
            f" {shortened(dims) or 'fixed sizes'}: there are no batch sizes to predict for."
        )
    found = open_runner(package, Variant()).describe()
    asked = {request.sizes[batch] for request in requests}
    doubled = {2**power for power in range(max(asked).bit_length())}
    return break_even(
        manifest.layers,
        found.layer_nodes,
        sorted(asked | doubled),
        example=manifest.dims[batch],
        instruction_set=found.kernels.instruction_set,
    )


def _batch_dim(manifest: Manifest) -> str | None:
    """Return the dimension that every input begins with; None if there is none."""
    first = {info.shape[0] if info.shape else None for info in manifest.inputs}
    name = next(iter(first)) if len(first) == 1 else None
    return name if isinstance(name, str) and name in manifest.dims else None
