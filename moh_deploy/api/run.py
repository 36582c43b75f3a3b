"""Run a package on the user's inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moh_deploy.errors import PackageError
from moh_deploy.package import Runtime, TensorInfo
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.runtime.run_report import RunReport
from moh_deploy.system.npz import BFLOAT16, NPZ_FILE, Array, write_npz
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import check_file_output
from moh_deploy.system.staging import staged_file
from moh_deploy.validate.reference.samples import read_user_vectors


def run(
    package_dir: Path | str,
    *,
    inputs: Path | str,
    outputs: Path | str,
    runtime: Runtime | None = None,
    kernels: Kernels = "auto",
    progress: Progress | None = None,
) -> RunReport:
    """Run a package, or an engine that was built from one, once and write its outputs.

    Args:
        package_dir: The package, or the engine directory.
        inputs: npz file; its members are named like the model's inputs; or all otherwise, in their
            order, which the report then says.
        outputs: npz file to write; its members are named like the model's outputs. An earlier npz
            file is replaced.
        runtime: `onnxruntime`, `openvino` or `onnxruntime-cuda`: what runs a package; None for
            what it was tuned for, or else ONNX Runtime. An engine has its own.
        kernels: What runs MoH nodes, see `Variant`.
        progress: What to report steps to.

    Raises:
        PackageError: Neither of them, or the outputs cannot be written.
        ConfigError: The inputs do not fit the model, or are the outputs' file.
        BackendError: The runtime failed, or the engine cannot run here.
    """
    progress, outputs, root = progress or SilentProgress(), Path(outputs), Path(package_dir)
    # Before the model is loaded and run.
    if outputs.suffix == ".npy":
        raise PackageError(
            f"{outputs} is named like a file of one array; outputs are written as an npz file.",
            hint=f"Name it {outputs.with_suffix('.npz').name}: it has an array for each output.",
        )
    check_file_output(outputs, NPZ_FILE, reads=[Path(inputs)])
    model = find_deployed(root)
    with progress.step("reading the inputs"):
        given = read_user_vectors(Path(inputs), model.manifest)
    with progress.step("loading the model"):
        runner = model.open(
            Variant(runtime=runtime_for(runtime, model.preferred_runtime), kernels=kernels)
        )
    with runner, progress.step("running the model"):
        # The run alone: it says how long an answer takes once a model is loaded.
        start = time.perf_counter()
        results = runner.run(given.inputs)
        seconds = time.perf_counter() - start
    # The file appears whole or not at all; an earlier one stays until then.
    with staged_file(outputs) as partial:
        write_npz(partial, results)
    found = runner.describe()
    return RunReport(
        package=root,
        outputs_file=outputs,
        outputs=tuple(
            TensorInfo(name, result.dtype.name, result.shape) for name, result in results.items()
        ),
        kernel_nodes=found.kernel_nodes,
        function_nodes=found.function_nodes,
        layer_runs=found.layer_runs,
        kernels=found.kernels,
        seconds=seconds,
        num_nan=_num_nan(results),
        by_order=given.by_order,
    )


def _num_nan(results: Mapping[str, Array]) -> dict[str, int]:
    """Return how many elements of each output are NaN, of those that have any."""
    counts = {
        name: int(np.isnan(array.astype(np.float32)).sum())  # bfloat16 included
        for name, array in results.items()
        if array.dtype == BFLOAT16 or array.dtype.kind == "f"
    }
    return {name: count for name, count in counts.items() if count}
