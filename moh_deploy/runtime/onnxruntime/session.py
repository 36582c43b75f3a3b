"""Open sessions of ONNX Runtime, on the CPU unless `cuda` asks for a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper, parser

from moh_deploy.errors import BackendError
from moh_deploy.graph.emulated_dtype import EmulatedDtype
from moh_deploy.native import INSTALL_ORT_GPU
from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.package.graph_nodes import all_nodes
from moh_deploy.runtime.base import AS_IT_IS, Variant
from moh_deploy.runtime.input_check import InputCheck
from moh_deploy.runtime.kernel_use import REINSTALL, KernelUse, choose_kernels
from moh_deploy.runtime.layer_runs import LayerImpl
from moh_deploy.runtime.onnxruntime.runner import Device, OrtRunner, calling_ort
from moh_deploy.runtime.onnxruntime.values import from_ort, tensor_info, to_ort
from moh_deploy.runtime.prepared_model import prepare_model
from moh_deploy.system.isolate import isolated
from moh_deploy.system.npz import Array
from moh_deploy.system.staging import scratch_directory

if TYPE_CHECKING:
    import onnxruntime as ort


# Severity of ONNX Runtime's log. Its warnings are about generated nodes; what fails is
# raised.
_FATAL_ONLY = 4

TRANSPOSE_FUSION = "optimization.disable_specified_optimizers", "MatmulTransposeFusion"
"""ONNX Runtime 1.32 dies of it where float16 is transposed so that its first axis becomes the rows
of a product with a matrix: tokens before samples, say."""


def open_session(
    source: OnnxPackage | Path,
    variant: Variant = AS_IT_IS,
    *,
    device: Device = "cpu",
    create: Callable[[str | bytes, ort.SessionOptions], ort.InferenceSession] | None = None,
) -> OrtRunner:
    """Load a model into ONNX Runtime.

    Args:
        source: A package, or the path of an ONNX model.
        variant: In which way.
        device: What the session computes on.
        create: Makes the session of a model, or of its path; None for `create_session`.

    Raises:
        BackendError: Kernels are required but not used, the library is there but cannot be used, an
            extra output is unknown, or ONNX Runtime refuses the model.
        ConfigError: An option is not listed.
        PackageError: The file is missing or not an ONNX model, or lacks the node of a layer.
    """
    name = runtime_name()
    import onnxruntime as ort

    # Emulation is decided here and recorded in the description: no result may look native that is
    # not. A model that computes in both is emulated in bfloat16.
    on_gpu = device != "cpu"
    emulated: list[EmulatedDtype] = [] if on_gpu or _has_bfloat16() else ["bfloat16"]
    emulated += ["float16"] if variant.round_results else []
    model = prepare_model(source, variant, emulate_dtypes=emulated)
    use = choose_kernels(
        variant.kernels,
        library=variant.library,
        instruction_set=variant.instruction_set,
        compute_type=model.compute_type,
        on_gpu=on_gpu,
    )
    # Fused operators would skip the roundings that are emulated.
    optimize = variant.optimize and not model.emulated_dtype
    options = session_options(model.folder, variant.threads, optimize)
    if not variant.spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = not variant.sizes_change
    if model.has_float16:
        options.add_session_config_entry(*TRANSPOSE_FUSION)
    # Older versions of ONNX Runtime write what was placed where into a file; it is read at once.
    with scratch_directory("moh-deploy-session") as scratch:
        placement = Placement(list(model.moh_nodes), scratch)
        placement.prepare(options)
        register(use, options, {operator.domain for operator in model.moh_nodes.values()})
        session = (create or create_session)(model.content, options)
        layer_impl = placement.read(session) | model.dense_nodes
    # The operators that the library would have to know for all nodes to run on kernels.
    unknown = {
        str(operator)
        for node, operator in model.moh_nodes.items()
        if layer_impl[node] == "function" and use.library is not None
    }
    use = replace(use, emulated_dtype=model.emulated_dtype, no_kernel_for=tuple(sorted(unknown)))
    run_options = None
    if not variant.spins:  # else the arena keeps as much as the largest run took
        run_options = ort.RunOptions()
        arenas = "cpu:0;gpu:0" if on_gpu else "cpu:0"
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arenas)
    inputs = tuple(map(tensor_info, session.get_inputs()))
    return OrtRunner(
        inputs,
        tuple(value.name for value in session.get_outputs()),
        model.description(name, use, layer_impl, variant.kernels),
        InputCheck(inputs),
        model.index_check,
        # On a GPU the memory of an array is no memory of the session: it is copied, and what is
        # written into the copy would be lost.
        {} if on_gpu else model.buffers,
        model.caches,
        run_options,
        session,
        device,
    )


def runtime_name() -> str:
    """Return `ONNX Runtime 1.32.0`, the version that runs here.

    Raises:
        BackendError: It cannot be imported.
    """
    try:
        # Of a wheel that was uninstalled beside another there may be a folder left, which Python
        # imports as an empty package.
        from onnxruntime import __version__
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported: {error}.",
            hint="Its wheels onnxruntime and onnxruntime-gpu hold the same files, so that"
            " uninstalling either breaks the other. For the CPU: pip install --force-reinstall"
            f" onnxruntime. For a GPU: {INSTALL_ORT_GPU}.",
        ) from error
    return f"ONNX Runtime {__version__}"


@lru_cache
def _has_bfloat16() -> bool:
    """Tell whether ONNX Runtime on the CPU multiplies bfloat16."""
    # Asked by trying, not by version: whether there is a kernel depends on the build and the
    # processor.
    text = "g (bfloat16[2, 2] a, bfloat16[2, 2] b) => (bfloat16[2, 2] y) { y = MatMul (a, b) }"
    product = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}')
    try:
        create_session(
            product.SerializeToString(), session_options(Path(), threads=1, optimize=False)
        )
    except BackendError:
        return False
    return True


def session_options(folder: Path, threads: int | None, optimize: bool) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if threads is not None:
        options.intra_op_num_threads = threads
    # A model handed over as bytes has no place of its own to look for external data.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.fsencode(folder.resolve())
    )
    return options


def create_session(content: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    import onnxruntime as ort

    model = path_or_bytes(content)
    return calling_ort(
        "loading the model",
        lambda: ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]),
    )


def path_or_bytes(content: str | bytes) -> os.PathLike[bytes] | bytes:
    """Return a model, or its path, as `InferenceSession` takes it."""
    return content if isinstance(content, bytes) else _RawPath(content)


@dataclass(frozen=True)
class _RawPath(os.PathLike[bytes]):
    """A path as the bytes that it is: of text, ONNX Runtime's binding takes UTF-8 only."""

    path: str

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


# Give a session our kernels, and ask it which nodes of domain `moh` run on them.


@dataclass(frozen=True)
class Placement:
    """The question, put before a session is made and answered after.

    Args:
        nodes: Names of the model's nodes of domain `moh`.
        scratch: An empty directory that lives until the answer is read.
    """

    nodes: Sequence[str]
    scratch: Path

    def prepare(self, options: ort.SessionOptions) -> None:
        """Let the session keep what `read` needs."""
        if not self.nodes:
            return
        # A kernel is chosen, or a function body inlined, while the session is made: it has to be
        # asked to remember.
        if _reports_assignment():
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            options.optimized_model_filepath = os.fsencode(self._dump)
            # Weights beside the dump: a protobuf file holds 2 GiB at most.
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "weights.bin"
            )

    def read(self, session: ort.InferenceSession) -> dict[str, LayerImpl]:
        """Return for each node whether a kernel runs it, or its function body."""
        if not self.nodes:
            return {}
        nodes: Iterable[Any]
        if _reports_assignment():
            subgraphs = session.get_provider_graph_assignment_info()
            nodes = [node for graph in subgraphs for node in graph.get_nodes()]
        else:
            nodes = all_nodes(onnx.load(self._dump, load_external_data=False).graph)
        # What has no kernel is gone: its function body stands in its place, under other names.
        kept = {node.name for node in nodes if base_domain(node.domain) == KERNEL_DOMAIN}
        return {name: "kernel" if name in kept else "function" for name in self.nodes}

    @property
    def _dump(self) -> Path:
        return self.scratch / "optimized.onnx"


def _reports_assignment() -> bool:
    """ONNX Runtime tells since 1.24; before, its optimised model has to be written out and read."""
    import onnxruntime as ort

    return hasattr(ort.InferenceSession, "get_provider_graph_assignment_info")


def register(use: KernelUse, options: ort.SessionOptions, domains: Iterable[str] = ()) -> None:
    """Give the library to a session that is still to be made.

    Args:
        domains: Those in which the model has nodes that are to run on kernels; none for the eight
            that the library expects.

    Raises:
        BackendError: The library or this ONNX Runtime refuses, with the reason.
    """
    if use.library is None:
        return
    # The library reads these when it is registered. That for GPUs has one set of kernels.
    if use.instruction_set is not None:
        options.add_session_config_entry("moh.instruction_set", use.instruction_set)
        options.add_session_config_entry("moh.compute_type", use.compute_type)
    if named := ",".join(sorted(domains)):
        options.add_session_config_entry("moh.domains", named)
    try:
        options.register_custom_ops_library(str(use.library))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class but this.
        import onnxruntime as ort

        raise BackendError(
            f"{use.library} cannot be registered with ONNX Runtime {ort.__version__}: {error}",
            hint=REINSTALL,
        ) from error


# Load a model as a program does that knows ONNX Runtime alone: does that end the process?


def crash_of_plain_session(path: Path) -> str | None:
    """Say how a plain session of a float16 model ends its process; None if it does not."""
    found = isolated(_load, path)
    # A refusal is an error that such a program sees; a signal is not.
    if found.return_code is None or found.return_code >= 0:
        return None
    return (
        f"A plain session of {runtime_name()} ends its process with {found.how()} on {path.name}:"
        f" set {TRANSPOSE_FUSION[0]} of it to {TRANSPOSE_FUSION[1]}, as moh-deploy does."
    )


def _load(path: Path) -> bool:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return True


# Run one node of a model by itself: what an operator computes that nothing here knows.


def run_node(model: bytes, inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of a node.

    Args:
        model: A ModelProto of that node alone, whose inputs have no types yet.
        inputs: In its order.

    Raises:
        BackendError: ONNX Runtime has no such operator, or it fails.
    """
    specs = tuple(TensorInfo("", array.dtype.name, array.shape) for array in inputs)
    session = _session(model, specs)
    names = [value.name for value in session.get_inputs()]
    feeds = {name: to_ort(array) for name, array in zip(names, inputs, strict=True)}
    return [from_ort(value) for value in session.run_with_ort_values(None, feeds)]


def node_output_types(model: bytes, inputs: Sequence[TensorInfo]) -> list[TensorInfo]:
    """Return what ONNX Runtime says of a node's outputs; a size that it cannot tell has a name
    that no input's size has.

    Raises:
        BackendError: It has no such operator, or the inputs do not fit it.
    """
    return [tensor_info(value) for value in _session(model, tuple(inputs)).get_outputs()]


@lru_cache(maxsize=32)
def _session(model: bytes, inputs: tuple[TensorInfo, ...]) -> ort.InferenceSession:
    proto = onnx.ModelProto.FromString(model)
    for declared, spec in zip(proto.graph.input, inputs, strict=True):
        dtype = helper.np_dtype_to_tensor_dtype(numpy_dtype(spec.dtype))
        declared.type.CopyFrom(helper.make_tensor_type_proto(dtype, spec.shape))
    return create_session(proto.SerializeToString(), session_options(Path(), 1, optimize=False))
