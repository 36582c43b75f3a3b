"""Say what is in a package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moh_deploy.backends.onnxruntime import open_session, runtime_name
from moh_deploy.backends.runner import LayerImpl
from moh_deploy.errors import PackageError
from moh_deploy.package import LayerInfo, OnnxPackage
from moh_deploy.progress import Progress, SilentProgress
from moh_deploy.report.inspect import InspectedLayer, InspectReport


def inspect(package_dir: Path | str, *, progress: Progress | None = None) -> InspectReport:
    """Read a package and ask ONNX Runtime what it runs on a kernel.

    Raises:
        PackageError: Not a package, or one that has changed since it was written.
        BackendError: ONNX Runtime cannot load it.
    """
    progress = progress or SilentProgress()
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    with progress.step("loading the model"):
        layer_impl = open_session(package).layer_impl
    layers = tuple(
        InspectedLayer(info, _runs_as(package, info, layer_impl))
        for info in package.manifest.layers
    )
    return InspectReport(package.root, package.manifest, layers, runtime_name())


def _runs_as(
    package: OnnxPackage, info: LayerInfo, layer_impl: Mapping[str, LayerImpl]
) -> LayerImpl | None:
    if info.node is None:
        return None
    if info.node not in layer_impl:
        raise PackageError(
            f"{package.root}: layer '{info.path}' is node '{info.node}' in the manifest, but"
            f" {package.model_path.name} has no such node of domain moh."
        )
    return layer_impl[info.node]
