"""Say what is in a package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moh_deploy.backends.onnxruntime import open_session, runtime_name
from moh_deploy.backends.runner import Kernels, LayerImpl
from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, router_nodes
from moh_deploy.progress import Progress, SilentProgress
from moh_deploy.report.inspect import InspectedLayer, InspectReport


def inspect(
    package_dir: Path | str, *, kernels: Kernels = "auto", progress: Progress | None = None
) -> InspectReport:
    """Read a package and ask ONNX Runtime what it runs on a kernel.

    Args:
        package_dir: The package.
        kernels: What is to run MoH nodes, see `open_session`.
        progress: What to report steps to.

    Raises:
        PackageError: Not a package, or one that has changed since it was written.
        BackendError: ONNX Runtime cannot load it.
    """
    progress = progress or SilentProgress()
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    layers = package.manifest.layers
    with progress.step("loading the model"):
        routers = router_nodes(package.model_path, layers)
        session = open_session(package, kernels=kernels)
    inspected = tuple(
        InspectedLayer(
            info,
            _runs_as(package, info.path, info.node, session.layer_impl),
            _runs_as(package, info.path, router, session.layer_impl),
        )
        for info, router in zip(layers, routers, strict=True)
    )
    return InspectReport(package.root, package.manifest, inspected, runtime_name(), session.kernels)


def _runs_as(
    package: OnnxPackage, layer: str, node: str | None, layer_impl: Mapping[str, LayerImpl]
) -> LayerImpl | None:
    if node is None:
        return None
    if node not in layer_impl:
        raise PackageError(
            f"{package.root}: layer '{layer}' is node '{node}' in the manifest, but"
            f" {package.model_path.name} has no such node of domain moh."
        )
    return layer_impl[node]
