"""Where skipping heads is predicted to break even for a package, at the batch sizes of traffic."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.decision.cost.traffic import SizedRequests
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.perf.cost_model.break_even import LayerBreakEven, break_even
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.suggest import shortened


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
