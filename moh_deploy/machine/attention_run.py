"""Run one MoHAttention here, and compare it with its definition."""

import numpy as np
import onnx

from moh_deploy.errors import BackendError
from moh_deploy.ops import MOH_ATTENTION
from moh_deploy.ops.cases import Case
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import Arrays
from moh_deploy.package import Runtime
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels, instruction_sets
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.staging import scratch_directory


def _inputs(rng: np.random.Generator) -> Arrays:
    """Q, K, V [1, 3, 8] of two heads and their gates [1, 3, 2], a part of them closed."""
    query, key, value = rng.standard_normal((3, 1, 3, 8))
    # For each of three tokens, two heads: the second closed, the first closed, both open.
    gates = np.array([[[1.0, 0.0], [0.0, 0.5], [2.0, 1.0]]])
    return tuple(array.astype(np.float32) for array in (query, key, value, gates))


_CASE = Case(
    name="doctor",
    op=MOH_ATTENTION.name,
    why="The kernel, or the function body, does not compute attention on this machine.",
    attributes=MOH_ATTENTION.complete({"q_num_heads": 2, "kv_num_heads": 2, "scale": 0.5}),
    build=_inputs,
)


def run_attention(kernels: Kernels, runtime: Runtime = "onnxruntime") -> tuple[str, ...]:
    """Run it with `off`, its function body, or `require`, the kernel.

    Returns:
        What the kernels can run on, the one that ran first; none of the function body, and of those
        for GPUs.

    Raises:
        BackendError: It is computed wrongly, or not at all.
    """
    case = _CASE
    model = single_node_model(case.op, case.input_types(), case.attributes)
    # What runs a node is asked by its name.
    model.graph.node[0].name = case.op
    with scratch_directory("moh-deploy-cpu") as scratch:
        path = scratch / "model.onnx"
        onnx.save(model, path)
        # The session has read the file when the directory goes.
        runner = open_runner(path, Variant(runtime, kernels, threads=1))
    arrays = case.inputs()
    names = (given.name for given in MOH_ATTENTION.inputs)
    feeds = {name: array for name, array in zip(names, arrays, strict=False) if array is not None}
    (found,) = runner.run(feeds).values()
    (expected,) = MOH_ATTENTION.reference(arrays, case.attributes)
    allowed = case.tolerance
    if not np.allclose(found, expected, allowed.relative, allowed.absolute):
        error = float(np.max(np.abs(found - expected)))
        raise BackendError(f"{case.op} is computed wrongly: off by {error:.3g}")
    library = runner.describe().kernels.library
    is_for_gpus = runtime == "onnxruntime-cuda"
    return () if library is None or is_for_gpus else tuple(instruction_sets(library))
