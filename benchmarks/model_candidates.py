"""What can run a whole model: our package, and what a user would pick instead."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from model_subjects import Prepared
from ort_session import Unusable, kernel_session, plain_session

from moh_deploy.errors import MoHDeployError
from moh_deploy.frontend.fx.containers import tensors_of
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package import Runtime
from moh_deploy.package.graph_nodes import all_nodes
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array

MOH, EAGER, PLAIN_ONNX, COMPILE, OPENVINO = "moh", "eager", "plain_onnx", "compile", "openvino"
MOH_OPENVINO = "moh_openvino"
OURS = (MOH, MOH_OPENVINO)
PEERS = (EAGER, PLAIN_ONNX, COMPILE, OPENVINO)


@dataclass(frozen=True)
class Candidate:
    """A loaded model with its inputs.

    Attributes:
        run: Computes the outputs, and nothing else.
        read: What `run` returned as arrays, in the order of the model's outputs.
    """

    name: str
    run: Callable[[], object]
    read: Callable[[object], list[Array]]


@dataclass(frozen=True)
class Field:
    """The candidates to compare.

    Attributes:
        candidates: Ours first, in ONNX Runtime and in OpenVINO.
        absent: Name of each other one that cannot run here to the reason.
    """

    candidates: list[Candidate]
    absent: Mapping[str, str] = field(default_factory=dict)


def all_candidates(
    prepared: Prepared,
    inputs: Mapping[str, Array],
    kernel: KernelUse,
    peers: Collection[str],
    threads: int,
) -> Field:
    """Load a model into everything that can run it.

    Args:
        inputs: The package's inputs, in the order of the original's arguments.
        peers: Which of `PEERS` are asked for.

    Raises:
        Unusable: Our own package cannot run.
    """
    candidates = [moh(prepared, inputs, kernel, threads)]
    absent = {}
    for name in (MOH_OPENVINO, *PEERS):
        if name in PEERS and name not in peers:
            absent[name] = "not asked for"
            continue
        try:
            candidates.append(candidate(name, prepared, inputs, threads))
        except Unusable as reason:
            absent[name] = str(reason)
    return Field(candidates, absent)


def moh(
    prepared: Prepared, inputs: Mapping[str, Array], kernel: KernelUse, threads: int
) -> Candidate:
    """Return our package on the kernels, if there are any."""
    path = prepared.package.model_path
    session, _ = kernel_session(path, moh_nodes(path), kernel, threads=threads)
    return on_ort(MOH, session, inputs)


def candidate(
    name: str, prepared: Prepared, inputs: Mapping[str, Array], threads: int
) -> Candidate:
    """Load a model into one of those that can run it; ours requires its kernels.

    Raises:
        Unusable: It cannot run here.
    """
    torch.set_num_threads(threads)
    return _BUILDERS[name](prepared, inputs, threads)


def _ours(
    name: str, runtime: Runtime, prepared: Prepared, inputs: Mapping[str, Array], threads: int
) -> Candidate:
    """Return our package in a runtime, on the kernels."""
    variant = Variant(runtime=runtime, kernels="require", threads=threads, spins=False)
    try:
        runner = open_runner(prepared.package, variant)
        call = runner.bound(inputs)
    except MoHDeployError as error:
        raise Unusable(_first_lines(error)) from error
    # What it computed is read by another run of the same model.
    return Candidate(name, call, lambda _: [*runner.run(inputs).values()])


def moh_nodes(path: Path) -> list[str]:
    graph = onnx.load(path, load_external_data=False).graph
    return [node.name for node in all_nodes(graph) if base_domain(node.domain) == KERNEL_DOMAIN]


def _plain(prepared: Prepared, inputs: Mapping[str, Array], threads: int) -> Candidate:
    return on_ort(PLAIN_ONNX, plain_session(prepared.plain, threads=threads), inputs)


def on_ort(name: str, session: ort.InferenceSession, inputs: Mapping[str, Array]) -> Candidate:
    """Return a session with its inputs as a candidate."""
    feeds = _by_position(name, [item.name for item in session.get_inputs()], inputs)
    values = {key: to_ort(array) for key, array in feeds.items()}
    return Candidate(
        name,
        lambda: session.run_with_ort_values(None, values),
        lambda results: [from_ort(value) for value in results],
    )


def original(prepared: Prepared, inputs: Mapping[str, Array]) -> Candidate:
    """Return the original model as it is."""
    return _in_torch(EAGER, prepared.module, inputs)


def _eager(prepared: Prepared, inputs: Mapping[str, Array], threads: int) -> Candidate:
    return original(prepared, inputs)


def _compiled(prepared: Prepared, inputs: Mapping[str, Array], threads: int) -> Candidate:
    """Compile for these sizes and this number of threads, which end up in the code."""
    torch.compiler.reset()
    candidate = _in_torch(COMPILE, torch.compile(prepared.module), inputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            candidate.run()
    except Exception as error:  # Whatever a compiler may raise, the others can still run.
        raise Unusable(_first_lines(error)) from error
    return candidate


def _in_torch(name: str, call: Callable[..., object], inputs: Mapping[str, Array]) -> Candidate:
    arguments = [torch.from_numpy(array.copy()) for array in inputs.values()]

    def run() -> object:
        with torch.no_grad():
            return call(*arguments)

    return Candidate(
        name, run, lambda result: [tensor.numpy().copy() for tensor in tensors_of(result)]
    )


def _openvino(prepared: Prepared, inputs: Mapping[str, Array], threads: int) -> Candidate:
    """Load the plain export, its shapes fixed to the inputs': the fastest that it offers."""
    try:
        import openvino
    except ImportError as error:
        raise Unusable(f"{error}; pip install 'moh-deploy[bench]'") from error
    try:
        core = openvino.Core()
        model = core.read_model(prepared.plain)
        feeds = _by_position(OPENVINO, [item.any_name for item in model.inputs], inputs)
        model.reshape({name: list(array.shape) for name, array in feeds.items()})
        compiled = core.compile_model(model, "CPU", _openvino_settings(threads))
    except RuntimeError as error:
        raise Unusable(_first_lines(error)) from error
    request = compiled.create_infer_request()
    return Candidate(
        OPENVINO,
        lambda: request.infer(feeds, share_inputs=True, share_outputs=True),
        lambda results: [np.array(results[output]) for output in compiled.outputs],
    )


def _openvino_settings(threads: int) -> dict[str, object]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,
        # By itself it would take bfloat16 where the machine has it: the others do not.
        "INFERENCE_PRECISION_HINT": "f32",
    }


def _by_position(name: str, names: list[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    if len(names) != len(inputs):
        raise Unusable(f"{name} takes {len(names)} inputs ({', '.join(names)}), not {len(inputs)}")
    return dict(zip(names, inputs.values(), strict=True))


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


_BUILDERS: dict[str, Callable[[Prepared, Mapping[str, Array], int], Candidate]] = {
    MOH: partial(_ours, MOH, "onnxruntime"),
    MOH_OPENVINO: partial(_ours, MOH_OPENVINO, "openvino"),
    EAGER: _eager,
    PLAIN_ONNX: _plain,
    COMPILE: _compiled,
    OPENVINO: _openvino,
}
