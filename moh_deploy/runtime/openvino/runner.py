"""Run a package with OpenVINO on the CPU."""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

import numpy as np
import onnx
from onnx import inliner

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.ops import OPS, op_names
from moh_deploy.ops.op_names import DENSE_DOMAIN, KERNEL_DOMAIN, base_domain
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.package.graph_nodes import all_nodes
from moh_deploy.runtime.base import AS_IT_IS, Description, Runner, Variant
from moh_deploy.runtime.input_check import IndexCheck, check_inputs, empty_axis
from moh_deploy.runtime.layer_runs import LayerImpl
from moh_deploy.runtime.openvino.extension import (
    Extension,
    choose_extension,
    import_openvino,
    openvino_name,
)
from moh_deploy.runtime.prepared_model import prepare_model
from moh_deploy.system.bounded_file import is_plain_name
from moh_deploy.system.npz import BFLOAT16, Array
from moh_deploy.system.staging import scratch_directory

if TYPE_CHECKING:
    import openvino as ov


# Write a model as OpenVINO reads it: MoH nodes that run on kernels, no function, real weights.

_NAME = "model.onnx"
_PROJECTIONS = (op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)


class LoweredModel(NamedTuple):
    """A model that was written for OpenVINO: where, what it takes, and names of what it returns.

    `domains` are those in which nodes are left that an extension has to know.
    """

    path: Path
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    domains: frozenset[str]


def write_lowered(
    content: str | bytes, weights: Path, folder: Path, *, extended: bool
) -> LoweredModel:
    """Write the model into an empty folder.

    Args:
        content: The model, or its path.
        weights: The folder that its external data are in.
        folder: Where to write. It is read before the model is compiled.
        extended: Nodes of ours that the extension converts stay. All others are written out as
            their function bodies.

    Raises:
        PackageError: Weights are not beside the model, or cannot be read.
    """
    if isinstance(content, bytes):
        model = onnx.load_model_from_string(content)
    else:
        model = onnx.load(content, load_external_data=False)
    found = {(node.domain, node.op_type) for node in all_nodes(model.graph)} if extended else set()
    kept = {group for group in found if _is_converted(*group)}
    if model.functions:
        model = inliner.inline_selected_functions(model, sorted(kept), exclude=True)
        # OpenVINO would take the body that is left of a kept operator for what it is to run.
        del model.functions[:]
    path = folder / _NAME
    path.write_bytes(model.SerializeToString())
    _place_weights(model.graph, weights, folder)
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_tensor_info(info) for info in model.graph.input if info.name not in given)
    outputs = tuple(output.name for output in model.graph.output)
    return LoweredModel(path, inputs, outputs, frozenset(domain for domain, _ in kept))


def _is_converted(domain: str, name: str) -> bool:
    # Weights of few bits are read by OpenVINO's own MatMulNBits, which is the body.
    if name in OPS and OPS[name].weight is not None:
        return False
    # Sparse or dense, a projection is one product of OpenVINO's there; the body for lower precision
    # would compute it in float32.
    bases = (KERNEL_DOMAIN, DENSE_DOMAIN) if name in _PROJECTIONS else (KERNEL_DOMAIN,)
    return base_domain(domain) in bases


def _place_weights(graph: onnx.GraphProto, weights: Path, folder: Path) -> None:
    """Put weights that lie beside a model beside the written one, too."""
    names = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(names):
        # A name that leads out of the folder would be written to there.
        if not all(map(is_plain_name, name.split("/"))) or name == _NAME:
            raise PackageError(
                f"weights of the model are in '{name}', expected a file beside the model.",
                hint="Save the model again with its external data beside it.",
            )
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # OpenVINO follows no symbolic link out of the folder. Another file system takes a copy.
        source = weights / name
        try:
            target.hardlink_to(source.resolve())
        except OSError:
            try:
                shutil.copyfile(source, target)
            except OSError as error:
                raise PackageError(
                    "the weights of the model cannot be read or copied:"
                    f" {source}: {error.strerror}."
                ) from error


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    """Return an input's type; an axis without a name gets one of its own."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name} axis {axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return TensorInfo(value.name, dtype, shape)


_T = TypeVar("_T")
_Shapes: TypeAlias = tuple[tuple[int, ...], ...]

MOST_SHAPES = 4
"""How many compiled models a runner keeps, those used last. Each has packed weights of its own."""


@dataclass(frozen=True)
class OpenVinoRunner(Runner):
    """A model in OpenVINO, compiled when a shape first comes: fixed sizes run faster."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    description: Description
    # Refuses indices that tables have no rows for: OpenVINO answers with zeros.
    index_check: IndexCheck
    _core: ov.Core
    _model: ov.Model
    _config: Mapping[str, str]
    _extension: Extension | None
    _requests: OrderedDict[_Shapes, ov.InferRequest] = field(default_factory=OrderedDict)
    # A request runs once at a time, and reshaping changes the model that all shapes share.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def describe(self) -> Description:
        return self.description

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.run_returning(inputs, self.outputs)

    def run_returning(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        self._check(inputs)
        with self._lock:
            key = tuple(inputs[info.name].shape for info in self.inputs)
            if key not in self._requests:
                self._requests[key] = self._compiled(inputs).create_infer_request()
            self._requests.move_to_end(key)
            while len(self._requests) > MOST_SHAPES:
                self._requests.popitem(last=False)
            request = self._requests[key]
            self._infer(request, self._tensors(inputs))
            return {name: _array(request.get_tensor(name)) for name in outputs}

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs the model on these inputs and gives no outputs: to be timed."""
        self._check(inputs)
        with self._lock:
            # Its own, so that other shapes may push the kept one out; the tensors live as long.
            request = self._compiled(inputs).create_infer_request()
            tensors = self._tensors(inputs)

        def call() -> None:
            with self._lock:
                self._infer(request, tensors)

        return call

    def close(self) -> None:
        self._requests.clear()

    def _check(self, inputs: Mapping[str, Array]) -> None:
        check_inputs(self.inputs, inputs)
        self.index_check.check(inputs)
        # OpenVINO 2026.4 compiles many models for it, writes beyond their memory, and the process
        # ends: with our kernels and without.
        if empty := empty_axis(self.inputs, inputs):
            raise BackendError(
                f"OpenVINO does not run on an empty tensor: {empty}, expected 1 or more.",
                hint="Fill that axis, or leave the call out. ONNX Runtime takes empty tensors.",
            )

    def _compiled(self, inputs: Mapping[str, Array]) -> ov.CompiledModel:
        shapes = {info.name: list(inputs[info.name].shape) for info in self.inputs}

        def compile_() -> ov.CompiledModel:
            self._model.reshape(shapes)
            return self._core.compile_model(self._model, "CPU", dict(self._config))

        # Operators that read constants alone run here.
        with self._failures_raised():
            return _calling_openvino(f"compiling the model for {shapes}", compile_)

    def _tensors(self, inputs: Mapping[str, Array]) -> dict[str, ov.Tensor]:
        return {info.name: _tensor(inputs[info.name]) for info in self.inputs}

    def _infer(self, request: ov.InferRequest, tensors: Mapping[str, ov.Tensor]) -> None:
        for name, tensor in tensors.items():
            request.set_tensor(name, tensor)
        with self._failures_raised():
            _calling_openvino("running the model", request.infer)

    @contextmanager
    def _failures_raised(self) -> Iterator[None]:
        """Raise what OpenVINO does not: that an op of ours failed meanwhile.

        Raises:
            BackendError: One did.
        """
        before = self._extension.failures() if self._extension is not None else 0
        yield
        # Of the whole process: another model's failure may be taken for one of this, and none is
        # missed.
        if self._extension is not None and self._extension.failures() != before:
            raise BackendError(f"a kernel failed in OpenVINO: {self._extension.last_failure()}.")


def open_compiled(source: OnnxPackage | Path, variant: Variant = AS_IT_IS) -> OpenVinoRunner:
    """Load a model into OpenVINO.

    Args:
        source: A package, or the path of an ONNX model.
        variant: In which way.

    Raises:
        BackendError: OpenVINO is not installed, kernels are required but not used, or OpenVINO
            refuses the model.
        ConfigError: An option is not listed, or not for OpenVINO.
        PackageError: The file is missing or not an ONNX model, or lacks the node of a layer.
    """
    _check_variant(variant)
    import_openvino()
    import openvino as ov

    prepared = prepare_model(source, variant)
    extension, use = choose_extension(variant, prepared.compute_type)
    core = ov.Core()
    with scratch_directory("moh-deploy-openvino") as scratch:
        extended = extension is not None
        written = write_lowered(prepared.content, prepared.folder, scratch, extended=extended)
        if extension is not None:
            extension.add_to(core, written.domains)
        model = _calling_openvino("reading the model", lambda: core.read_model(written.path))
    # The extension, if any, converts all MoH nodes.
    impl: LayerImpl = "kernel" if extended else "function"
    layer_impl = dict.fromkeys(prepared.moh_nodes, impl) | prepared.dense_nodes
    return OpenVinoRunner(
        written.inputs,
        written.outputs,
        prepared.description(openvino_name(), use, layer_impl, variant.kernels),
        prepared.index_check,
        core,
        model,
        _config(variant),
        extension,
    )


def _check_variant(variant: Variant) -> None:
    """Refuse what OpenVINO has no word for: left out in silence it would be taken for done."""
    if not variant.optimize or variant.round_results:
        raise ConfigError(
            "OpenVINO always rewrites the graph that it is given, and rounds no result by itself:"
            " a model as it is written runs with ONNX Runtime."
        )


def _config(variant: Variant) -> dict[str, str]:
    # `f32` leaves every operator the type that the model says: what is bfloat16 there runs in it
    # where the processor can, and what a policy kept in float32 is not rounded behind its back.
    config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    if variant.threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(variant.threads)
    return config


def _tensor(array: Array) -> ov.Tensor:
    import openvino as ov

    # Writeable, though nothing is written: OpenVINO shares no other memory (of a mapped file, say).
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == BFLOAT16:
        # numpy has no bfloat16 of its own: the bits, with their type beside them.
        tensor = ov.Tensor(ov.Type.bf16, ov.Shape(array.shape))
        tensor.data.view(np.uint16)[...] = array.view(np.uint16)
        return tensor
    # OpenVINO reads this very array, which the tensor keeps alive.
    return ov.Tensor(array, shared_memory=True)


def _array(tensor: ov.Tensor) -> Array:
    """Return a copy of a tensor, which the next run overwrites."""
    import openvino as ov

    values: Array = np.array(tensor.data, copy=True)
    # Handed over as float16, bit for bit.
    return values.view(BFLOAT16) if tensor.get_element_type() == ov.Type.bf16 else values


def _calling_openvino(doing: str, call: Callable[[], _T]) -> _T:
    try:
        return call()
    except Exception as error:  # OpenVINO's exceptions have no common base class but this.
        # Places in OpenVINO's source say nothing about the model.
        lines = list(filter(None, (line.strip() for line in str(error).splitlines())))
        kept = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
        text = " ".join(kept or lines)
        text = text if len(text) <= 500 else f"{text[:250]} [...] {text[-250:]}"
        raise BackendError(f"OpenVINO failed while {doing}: {text}") from error
