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
    op_names.MATMUL_NBITS,
    op_names.QUERY_PROJECTION_NBITS,
    op_names.OUTPUT_PROJECTION_NBITS,
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
    if name in _NBITS:
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
