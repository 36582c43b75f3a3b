"""Run a package on the user's inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from moh_deploy.atomic import staged_file
from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.backends.runner import Kernels
from moh_deploy.errors import ConfigError
from moh_deploy.npz import Array, write_npz
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.progress import Progress, SilentProgress
from moh_deploy.report.run import RunReport
from moh_deploy.validate.user_vectors import read_user_vectors


def run(
    package_dir: Path | str,
    *,
    inputs: Path | str,
    outputs: Path | str,
    kernels: Kernels = "auto",
    progress: Progress | None = None,
) -> RunReport:
    """Run a package once and write its outputs.

    Args:
        package_dir: The package.
        inputs: npz file; its members are named like the model's inputs, or are in their order.
        outputs: npz file to write; its members are named like the model's outputs.
        kernels: What runs MoH nodes, see `open_session`.
        progress: What to report steps to.

    Raises:
        PackageError: Not a package, or the outputs cannot be written.
        ConfigError: The inputs do not fit the model.
        BackendError: ONNX Runtime failed.
    """
    progress, outputs = progress or SilentProgress(), Path(outputs)
    _check_writable(outputs)
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        feeds = read_user_vectors(Path(inputs), package.manifest).inputs
    with progress.step("loading the model"):
        session = open_session(package, kernels=kernels)
    with progress.step("running the model"):
        start = time.perf_counter()
        results = session.run(feeds)
        seconds = time.perf_counter() - start
    with staged_file(outputs) as partial:
        write_npz(partial, results)
    impls = list(session.layer_impl.values())
    return RunReport(
        package=package.root,
        outputs_file=outputs,
        outputs=_infos(results),
        kernel_nodes=impls.count("kernel"),
        function_nodes=impls.count("function"),
        layer_runs=session.layer_runs,
        kernels=session.kernels,
        seconds=seconds,
    )


def _check_writable(outputs: Path) -> None:
    if outputs.is_dir():
        raise ConfigError(
            f"{outputs} is a directory, expected an npz file to write the outputs to."
        )
    if not outputs.resolve().parent.is_dir():
        raise ConfigError(f"{outputs} cannot be written: its directory does not exist.")


def _infos(results: Mapping[str, Array]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, one.dtype.name, one.shape) for name, one in results.items())
