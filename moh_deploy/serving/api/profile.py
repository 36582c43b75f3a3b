"""Record the routing of traffic that is known to be good, as the reference of `watch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels, KernelUse
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.serving.drift import reference
from moh_deploy.serving.drift.report import ProfileReport
from moh_deploy.serving.telemetry.routing import (
    RecordedWindow,
    RoutingReader,
    is_window,
    read_window,
)
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import check_file_output
from moh_deploy.validate.reference.samples import read_samples


def profile(
    package_dir: Path | str,
    output: Path | str,
    *,
    inputs: Sequence[Path | str],
    request_size: int = 1,
    window: int = 256,
    false_alarms: float = 0.001,
    kernels: Kernels = "auto",
    progress: Progress | None = None,
) -> ProfileReport:
    """Record requests, calibrate what counts as chance, and write `reference.json`.

    Args:
        package_dir: The package.
        output: File to write.
        inputs: npz files of inputs, or directories of them; or one dump of a served model's window.
        request_size: Samples of a request: files of inputs are cut into such.
        window: Requests of the smallest window that `watch` will judge.
        false_alarms: The share of windows of unchanged traffic that may alarm.
        kernels: What runs MoH nodes, see `Variant`.
        progress: What to report steps to.

    Raises:
        PackageError: Not a package, or it has changed since it was written; or the file cannot be
            written.
        ConfigError: It is an engine, there are too few requests, or an option or a file does not
            fit.
        BackendError: The runtime cannot load the model.
    """
    progress, root = progress or SilentProgress(), Path(package_dir)
    check_file_output(Path(output), reference.REFERENCE_FILE, reads=map(Path, inputs))
    if find_deployed(root).is_compiled:
        raise ConfigError(
            f"{root} is an engine: it was compiled without its gates, so nothing of its routing can"
            " be read.",
            hint="Profile the package that it was built from.",
        )
    if not inputs:
        raise ConfigError("profile needs inputs.", hint="Give some: --inputs DIR.")
    for name, value in (("request_size", request_size), ("window", window)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, expected 1 or more.")
    if not 1e-4 <= false_alarms <= 0.1:
        raise ConfigError(f"false_alarms is {false_alarms}, expected 0.0001 to 0.1.")
    paths = [Path(path) for path in inputs]
    with progress.step("reading the package"):
        package = OnnxPackage.open(root)
        files = () if is_window(paths[0]) else read_samples(paths, package.manifest)
    use: KernelUse | None = None
    if files:
        with progress.step("running the requests"):
            reader = RoutingReader.of(package)
            variant = Variant(kernels=kernels, extra_outputs=reader.names)
            with open_runner(package, variant) as runner:
                requests = reference.requests_of(package.manifest, files, request_size)
                recorded = reference.record_requests(package, reader, runner, requests)
                use = runner.describe().kernels
    else:
        recorded = _dump(paths, package)
    with progress.step("calibrating"):
        profiled = reference.profile_of(recorded, window=window, rate=false_alarms)
    reference.write_reference(Path(output), profiled)
    return ProfileReport(root, Path(output), profiled, use)


def _dump(paths: Sequence[Path], package: OnnxPackage) -> RecordedWindow:
    if len(paths) > 1:
        raise ConfigError(f"inputs name a dump of a window and {len(paths) - 1} more files.")
    recorded = read_window(paths[0])
    if recorded.about.digest != package.manifest.files["model.onnx"]:
        raise ConfigError(f"{paths[0]} was recorded of another package than {package.root}.")
    return recorded
