"""Where skipping heads breaks even for a package: as `tune` timed its layers, and predicted."""

from collections.abc import Sequence

from moh_deploy.decision.cost.prices import SizedRequests
from moh_deploy.decision.size_break_even import SizeBreakEven, along_lines
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.perf.cost_model.prediction import LayerBreakEven, break_even, platform_of
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.suggest import shortened

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
        gains = []
        for ms in times:
            # What the fastest way that skips heads saves of the time without.
            skipping = [ms[way] for way in ("sparse", "projected", "chosen") if way in ms]
            if skipping and "dense" in ms:
                gains.append((1 - min(skipping) / ms["dense"],) * 3)
        if gains and len(gains) == len(tuning.sizes):
            found += along_lines(name, STANDARD_OPERATORS, tuning.sizes, gains)
    return tuple(found)


def predicted_break_even(
    package: OnnxPackage, requests: Sequence[SizedRequests]
) -> tuple[LayerBreakEven, ...]:
    """Predict each layer of a package, and all together, from one sample to the largest batch.

    Other dimensions have the sizes of the package's example.

    Raises:
        ConfigError: The package has no dimension of its batch, or traffic has not that one.
        BackendError: ONNX Runtime cannot load it.
    """
    manifest, dims = package.manifest, requests[0].sizes
    # The dimension that every input begins with.
    first = {info.shape[0] if info.shape else None for info in manifest.inputs}
    batch = next(iter(first)) if len(first) == 1 else None
    known = isinstance(batch, str) and batch in manifest.dims
    if not isinstance(batch, str) or not known or batch not in dims:
        what = f"'{batch}'" if known else "none of that kind"
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
        platform=platform_of(manifest, found.kernels),
    )
