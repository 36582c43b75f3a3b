"""Runs one MoHAttention in ONNX Runtime on the CPU, and compares it with its definition."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx

from moh_deploy.errors import BackendError
from moh_deploy.ops.cases import Case
from moh_deploy.ops.single_node import single_node_model
from moh_deploy.ops.spec import OPS
from moh_deploy.runtime.onnxruntime.kernels import instruction_sets
from moh_deploy.runtime.onnxruntime.session import OrtRunner, open_session
from moh_deploy.runtime.runner import Kernels
from moh_deploy.system.staging import scratch_directory

_OP = "MoHAttention"


def main(kernels: str) -> dict[str, object]:
    """Run it with `off`, its function body, or `require`, the kernel."""
    case = next(one for one in OPS[_OP].cases if one.dtype == "float32")
    runner = _open(case, cast(Kernels, kernels))
    _compare(case, runner)
    library = runner.kernels.library
    return {"instruction_sets": [] if library is None else instruction_sets(library)}


def _open(case: Case, kernels: Kernels) -> OrtRunner:
    model = single_node_model(case.op, case.input_types(), case.attributes)
    model.graph.node[0].name = _OP
    with scratch_directory("moh-deploy-cpu") as scratch:
        path = scratch / "model.onnx"
        onnx.save(model, path)
        return open_session(path, kernels=kernels, threads=1)


def _compare(case: Case, runner: OrtRunner) -> None:
    names = (one.name for one in OPS[_OP].inputs)
    arrays = case.inputs()
    feeds = {name: array for name, array in zip(names, arrays, strict=False) if array is not None}
    (found,) = runner.run(feeds).values()
    (expected,) = OPS[_OP].reference(arrays, OPS[_OP].complete(case.attributes))
    allowed = case.tolerance
    if not np.allclose(found, expected, allowed.relative, allowed.absolute):
        error = float(np.max(np.abs(found - expected)))
        raise BackendError(f"{_OP} is computed wrongly: off by {error:.3g}")
