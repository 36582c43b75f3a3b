"""Show what is in a package or an engine: layers, choices, predictions, and what runs them."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.package.writer import model_bytes
from moh_deploy.perf.cost_model.prediction import platform_of, predict, speed_by_share
from moh_deploy.perf.inspect_report import InspectReport, decoder_savings
from moh_deploy.report.report import Report
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.routing_statistics import RecordedLoad


def inspect(
    package_dir: Path | str, *, kernels: Kernels = "auto", progress: Progress | None = None
) -> InspectReport | Report:
    """Read a package and ask ONNX Runtime what it runs on a kernel; or read an engine.

    Args:
        package_dir: The package, or the engine directory.
        kernels: What is to run MoH nodes, see `Variant`.
        progress: What to report steps to.

    Raises:
        PackageError: Not a package, or one that has changed since it was written.
        BackendError: ONNX Runtime cannot load it.
    """
    progress = progress or SilentProgress()
    if (report := find_deployed(package_dir).inspected()) is not None:
        if kernels != "auto":
            raise ConfigError(
                f"kernels is {kernels}, but what runs the layers of {package_dir} was decided when"
                " it was built.",
                hint="Leave the option out.",
            )
        return report
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
    with progress.step("loading the model"):
        # Asked of a session, not read from the file: only the runtime knows what has a kernel here.
        found = open_runner(package, Variant(kernels=kernels)).describe()
    use = found.kernels
    platform = platform_of(package.manifest, use)
    by_layer = zip(package.manifest.layers, found.layer_nodes, strict=True)
    return InspectReport(
        package=package.root,
        manifest=package.manifest,
        layer_runs=found.layer_runs,
        layer_nodes=found.layer_nodes,
        predictions=tuple(predict(layer, nodes, platform) for layer, nodes in by_layer),
        runtime=found.runtime,
        kernels=use,
        node_runs=found.layer_impl,
        savings=decoder_savings(package.manifest, found.layer_nodes, model_bytes(package)),
        recorded_sizes=package.recorded_sizes,
        head_loads=RecordedLoad.of(package.manifest.layers, package.vectors),
        speed=speed_by_share(package.manifest.layers, found.layer_nodes, platform),
    )
