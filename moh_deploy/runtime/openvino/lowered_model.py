"""Write a model as OpenVINO reads it: MoH nodes that run on kernels, no function, real weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx import inliner

from moh_deploy.errors import PackageError
from moh_deploy.ops import op_names
from moh_deploy.ops.op_names import DENSE_DOMAIN, KERNEL_DOMAIN, base_domain
from moh_deploy.package import TensorInfo
from moh_deploy.package.graph_nodes import all_nodes
from moh_deploy.system.bounded_file import is_plain_name

_NAME = "model.onnx"
_PROJECTIONS = (op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)
_NBITS = (
    *(op_names.MATMUL_NBITS, op_names.QUERY_PROJECTION_NBITS, op_names.OUTPUT_PROJECTION_NBITS),
)


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
    model = _loaded(content)
    kept = _converted(model.graph) if extended else set()
    if model.functions:
        model = inliner.inline_selected_functions(model, sorted(kept), exclude=True)
        # OpenVINO would take the body that is left of a kept operator for what it is to run.
        del model.functions[:]
    path = folder / _NAME
    path.write_bytes(model.SerializeToString())
    _place_weights(model.graph, weights, folder)
    outputs = tuple(output.name for output in model.graph.output)
    domains = frozenset(domain for domain, _ in kept)
    return LoweredModel(path, _inputs(model.graph), outputs, domains)


def _converted(graph: onnx.GraphProto) -> set[tuple[str, str]]:
    """Return domain and name of the operators in a graph that the extension converts."""
    found = {(node.domain, node.op_type) for node in all_nodes(graph)}
    return {group for group in found if _is_converted(*group)}


def _is_converted(domain: str, name: str) -> bool:
    # Weights of few bits are read by OpenVINO's own MatMulNBits, which is the body.
    if name in _NBITS:
        return False
    # Sparse or dense, a projection is one product of OpenVINO's there; the body for lower precision
    # would compute it in float32.
    bases = (KERNEL_DOMAIN, DENSE_DOMAIN) if name in _PROJECTIONS else (KERNEL_DOMAIN,)
    return base_domain(domain) in bases


def _loaded(content: str | bytes) -> onnx.ModelProto:
    if isinstance(content, bytes):
        return onnx.load_model_from_string(content)
    return onnx.load(content, load_external_data=False)


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
        try:
            target.hardlink_to((weights / name).resolve())
        except OSError:
            _copy(weights / name, target)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise PackageError(
            f"the weights of the model cannot be read or copied: {source}: {error.strerror}."
        ) from error


def _inputs(graph: onnx.GraphProto) -> tuple[TensorInfo, ...]:
    given = {tensor.name for tensor in graph.initializer}
    return tuple(_tensor_info(info) for info in graph.input if info.name not in given)


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    """Return an input's type; an axis without a name gets one of its own."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name} axis {axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    return TensorInfo(value.name, dtype, shape)
