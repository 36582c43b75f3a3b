"""Run a package on the user's inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from moh_deploy.errors import PackageError
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.runtime.run_report import RunReport
from moh_deploy.runtime.runner import Kernels, Runner
from moh_deploy.runtime.tensorrt.engine_reading import is_engine_dir
from moh_deploy.runtime.tensorrt.engine_runs import open_engine
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.staging import staged_file
from moh_deploy.validate.user_vectors import read_user_vectors


def run(
    package_dir: Path | str,
    *,
    inputs: Path | str,
    outputs: Path | str,
    kernels: Kernels = "auto",
    progress: Progress | None = None,
) -> RunReport:
    """Run a package, or an engine that was built from one, once and write its outputs.

    Args:
        package_dir: The package, or the engine directory.
        inputs: npz file; its members are named like the model's inputs, or are in their order.
        outputs: npz file to write; its members are named like the model's outputs.
        kernels: What runs MoH nodes, see `open_session` and `open_engine`.
        progress: What to report steps to.

    Raises:
        PackageError: Neither of them, or the outputs cannot be written.
        ConfigError: The inputs do not fit the model.
        BackendError: The runtime failed, or the engine cannot run here.
    """
    progress, outputs, root = progress or SilentProgress(), Path(outputs), Path(package_dir)
    _check_writable(outputs)
    with ExitStack() as closing:
        runner, feeds = _load(root, Path(inputs), kernels, progress, closing)
        with progress.step("running the model"):
            start = time.perf_counter()
            results = runner.run(feeds)
            seconds = time.perf_counter() - start
    with staged_file(outputs) as partial:
        write_npz(partial, results)
    impls = list(runner.layer_impl.values())
    return RunReport(
        package=root,
        outputs_file=outputs,
        outputs=_infos(results),
        kernel_nodes=impls.count("kernel"),
        function_nodes=impls.count("function"),
        layer_runs=runner.layer_runs,
        kernels=runner.kernels,
        seconds=seconds,
    )


def _load(
    root: Path, inputs: Path, kernels: Kernels, progress: Progress, closing: ExitStack
) -> tuple[Runner, dict[str, Array]]:
    """Return what runs the model, and what to run it on."""
    if is_engine_dir(root):
        with progress.step("loading the engine"):
            engine = open_engine(root, kernels)
            closing.enter_context(engine.engine)
        return engine, read_user_vectors(inputs, engine.engine.manifest).inputs
    with progress.step("reading the package"):
        package = OnnxPackage.open(root)
        feeds = read_user_vectors(inputs, package.manifest).inputs
    with progress.step("loading the model"):
        return open_session(package, kernels=kernels), feeds


def _check_writable(outputs: Path) -> None:
    if outputs.is_dir():
        raise PackageError(
            f"{outputs} is a directory, expected an npz file to write the outputs to."
        )
    if not outputs.resolve().parent.is_dir():
        raise PackageError(f"{outputs} cannot be written: its directory does not exist.")


def _infos(results: Mapping[str, Array]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name, one.dtype.name, one.shape) for name, one in results.items())
