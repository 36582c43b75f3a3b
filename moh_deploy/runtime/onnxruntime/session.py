"""Run a package with ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import onnx
from onnx import helper, parser

from moh_deploy.errors import BackendError
from moh_deploy.graph.emulated_dtype import EmulatedDtype
from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.package import CachesInPlace, OnnxPackage, TensorInfo
from moh_deploy.runtime.base import AS_IT_IS, Description, Runner, Variant
from moh_deploy.runtime.input_check import IndexCheck, check_inputs, check_room, empty_axis
from moh_deploy.runtime.kernel_use import choose_kernels
from moh_deploy.runtime.onnxruntime.placement import Placement, register
from moh_deploy.runtime.onnxruntime.values import from_ort, tensor_info, to_ort
from moh_deploy.runtime.prepared_model import prepare_model
from moh_deploy.system.isolate import isolated
from moh_deploy.system.npz import Array
from moh_deploy.system.staging import scratch_directory

if TYPE_CHECKING:
    import onnxruntime as ort

if TYPE_CHECKING:
    import onnxruntime as ort


_T = TypeVar("_T")

# Severity of ONNX Runtime's log. Its warnings are about nodes that nobody wrote; what fails is
# raised.
_FATAL_ONLY = 4

TRANSPOSE_FUSION = "optimization.disable_specified_optimizers", "MatmulTransposeFusion"
"""ONNX Runtime 1.32 dies of it where float16 is transposed so that its first axis becomes the rows
of a product with a matrix: tokens before samples, say."""


@dataclass(frozen=True)
class OrtRunner(Runner):
    """A model in an ONNX Runtime session: inputs are checked, and bfloat16 goes in and out."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    description: Description
    index_check: IndexCheck
    # Outputs that are written into an input, and these inputs: one memory is both.
    buffers: Mapping[str, str]
    caches: CachesInPlace | None  # what the package says of them; None for models that are of none
    run_options: ort.RunOptions  # how ONNX Runtime makes each run that is not timed
    _session: ort.InferenceSession

    def describe(self) -> Description:
        return self.description

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.run_returning(inputs, self.outputs)

    def run_returning(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        self._check(inputs)
        options = self.run_options
        if not self.buffers:
            values = {name: to_ort(array) for name, array in inputs.items()}
            names = list(outputs)
            results = self._explaining(
                inputs, lambda: self._session.run_with_ort_values(names, values, options)
            )
            return {name: from_ort(value) for name, value in zip(names, results, strict=True)}
        # One memory for each buffer, a copy of the input: the caller's stays as it is. Arrays are
        # held here until all is copied: ONNX Runtime's values do not keep them.
        feeds = self._with_own_buffers(inputs)
        binding = self._bound(feeds, outputs)
        self._explaining(inputs, lambda: self._session.run_with_iobinding(binding, options))
        # Of buffers whose output nobody asked for, there are results behind.
        found = dict(zip(outputs, binding.get_outputs(), strict=False))
        return {
            name: feeds[self.buffers[name]] if name in self.buffers else from_ort(found[name])
            for name in outputs
        }

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs the model on these inputs and gives no outputs: to be timed.

        Values go in and out by a binding: a run that is handed them costs 40 us of Python.

        Raises:
            ConfigError: As `run` does.
            BackendError: A dtype is emulated: the time would be that of the emulation.
        """
        use = self.description.kernels
        if use.emulated_dtype is not None:
            raise BackendError(
                f"the model is in {use.emulated_dtype}, which ONNX Runtime on the CPU has"
                " no kernels for: it can be run and compared here by emulation, not timed.",
                hint="Time it in float32 or float16.",
            )
        self._check(inputs)
        # ONNX Runtime reads these very arrays: they live as long as the call.
        feeds = self._with_own_buffers(inputs)
        binding = self._bound(feeds, self.outputs)

        def call() -> None:
            # A cache that is written in place is written at the same place in each call.
            self._explaining(feeds, lambda: self._session.run_with_iobinding(binding))

        return call

    def _check(self, inputs: Mapping[str, Array]) -> None:
        sizes = check_inputs(self.inputs, inputs)
        if self.caches is not None:
            check_room(self.caches, sizes, inputs)
        self.index_check.check(inputs)

    def _with_own_buffers(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs as ONNX Runtime reads them, of what is written in place a copy."""
        written = set(self.buffers.values())
        return {
            name: np.array(array, order="C") if name in written else np.require(array, None, "C")
            for name, array in inputs.items()
        }

    def _bound(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> ort.IOBinding:
        """Bind inputs and outputs: a buffer as both. The arrays have to outlive the binding."""
        binding = self._session.io_binding()
        values = {name: to_ort(array) for name, array in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        # Those of buffers in any case: without one, ONNX Runtime copies the buffer.
        for name in dict.fromkeys([*outputs, *self.buffers]):
            if name in self.buffers:
                binding.bind_ortvalue_output(name, values[self.buffers[name]])
            else:
                binding.bind_output(name)
        return binding

    def _explaining(self, inputs: Mapping[str, Array], run: Callable[[], _T]) -> _T:
        try:
            return _calling_ort("running the model", run)
        except BackendError as error:
            empty = empty_axis(self.inputs, inputs)
            if empty is None:
                raise
            raise BackendError(
                f"the model does not run on an empty tensor: {empty}, expected 1 or more."
                f" {error.message}",
                hint="Fill that axis, or leave the call out."
                " Attention that runs on a kernel (--kernels auto) takes empty tensors.",
            ) from error


def open_session(source: OnnxPackage | Path, variant: Variant = AS_IT_IS) -> OrtRunner:
    """Load a model into ONNX Runtime.

    Args:
        source: A package, or the path of an ONNX model.
        variant: In which way.

    Raises:
        BackendError: Kernels are required but not used, the library is there but cannot be used, an
            extra output is unknown, or ONNX Runtime refuses the model.
        ConfigError: An option is none of those listed.
        PackageError: The file is missing or not an ONNX model, or lacks the node of a layer.
    """
    import onnxruntime as ort

    # Emulation is decided here and recorded in the description: no result may look native that is
    # not. A model that computes in both is emulated in bfloat16.
    emulated: list[EmulatedDtype] = [] if _has_bfloat16() else ["bfloat16"]
    emulated += ["float16"] if variant.round_results else []
    model = prepare_model(source, variant, emulate_dtypes=emulated)
    use = choose_kernels(
        variant.kernels,
        library=variant.library,
        instruction_set=variant.instruction_set,
        compute_type=model.compute_type,
    )
    # Fused operators would skip the roundings that are emulated.
    optimize = variant.optimize and not model.emulated_dtype
    options = session_options(model.folder, variant.threads, optimize)
    if not variant.spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if model.has_float16:
        options.add_session_config_entry(*TRANSPOSE_FUSION)
    # Older versions of ONNX Runtime write what was placed where into a file; it is read at once.
    with scratch_directory("moh-deploy-session") as scratch:
        placement = Placement(list(model.moh_nodes), scratch)
        placement.prepare(options)
        register(use, options, {operator.domain for operator in model.moh_nodes.values()})
        session = create_session(model.content, options)
        layer_impl = placement.read(session) | model.dense_nodes
    # The operators that the library would have to know for all nodes to run on kernels.
    unknown = {
        str(operator)
        for node, operator in model.moh_nodes.items()
        if layer_impl[node] == "function" and use.library is not None
    }
    use = replace(use, emulated_dtype=model.emulated_dtype, no_kernel_for=tuple(sorted(unknown)))
    run_options = ort.RunOptions()
    if not variant.spins:  # else the arena keeps as much as the largest run took
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return OrtRunner(
        tuple(map(tensor_info, session.get_inputs())),
        tuple(value.name for value in session.get_outputs()),
        model.description(runtime_name(), use, layer_impl, variant.kernels),
        model.index_check,
        model.buffers,
        model.caches,
        run_options,
        session,
    )


def runtime_name() -> str:
    """Return `ONNX Runtime 1.32.0`, the version that runs here."""
    import onnxruntime as ort

    return f"ONNX Runtime {ort.__version__}"


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

    model = content if isinstance(content, bytes) else _RawPath(content)
    return _calling_ort(
        "loading the model",
        lambda: ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]),
    )


@dataclass(frozen=True)
class _RawPath(os.PathLike[bytes]):
    """A path as the bytes that it is: of text, ONNX Runtime's binding takes UTF-8 only."""

    path: str

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


def _calling_ort(doing: str, call: Callable[[], _T]) -> _T:
    try:
        return call()
    except Exception as error:  # ONNX Runtime's exceptions have no common base class but this.
        # Status codes and source locations say nothing about the model.
        text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
        text = _SOURCE_LOCATION.sub("", text)
        text = text if len(text) <= 500 else f"{text[:250]} [...] {text[-250:]}"
        raise BackendError(f"ONNX Runtime failed while {doing}: {text}") from error


# `/path/reshape.h:45 onnxruntime::Reshape::Reshape(const Shape &, bool) `, or a bare function name.
_SOURCE_LOCATION = re.compile(r"\S*\.(?:cc|h|cpp):\d+ (?:[\w:&*<>~, ]*[\w:>]\([^()]*\)|[\w:~]+) ")


# Load a model as a program does that knows ONNX Runtime alone: does that end the process?


def crash_of_plain_session(path: Path) -> str | None:
    """Say how a plain session of a float16 model ends its process; None if it does not."""
    found = isolated(_load, path)
    # A refusal is an error that such a program sees; a signal is none.
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
