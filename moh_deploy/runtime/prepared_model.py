"""Prepare a model for a runtime: edits and extra outputs, and what to know of its nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

import onnx

from moh_deploy import package
from moh_deploy.errors import BackendError, PackageError
from moh_deploy.graph.emulated_dtype import EmulatedDtype, computes_in, emulate
from moh_deploy.graph.layer_nodes import LayerNodes, layer_nodes
from moh_deploy.ops.op_names import DENSE_DOMAIN, KERNEL_DOMAIN, base_domain
from moh_deploy.package.graph_nodes import all_nodes, router_nodes
from moh_deploy.runtime.base import AS_IT_IS, Description, Variant
from moh_deploy.runtime.input_check import IndexCheck
from moh_deploy.runtime.kernel_use import Kernels, KernelUse, require_kernels
from moh_deploy.runtime.layer_runs import LayerImpl, layer_runs

# Find outputs of a model that may be the memory of an input: caches that are written in place.


def written_buffers(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the name of each output that is an input with something written into it (by
    TensorScatter) to the name of that input.
    """
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name for value in graph.input} - weights
    outputs = {value.name for value in graph.output}
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "TensorScatter" and node.domain in ("", "ai.onnx")
        if node.input[0] in inputs and node.output[0] in outputs
    }


class Operator(NamedTuple):
    """Name the operator of a node as ONNX does: `moh::MoHRouter`."""

    domain: str
    name: str

    def __str__(self) -> str:
        return f"{self.domain}::{self.name}"


class PreparedModel(NamedTuple):
    """A model to give to a runtime, and the MoH nodes in it, layer by layer.

    `content` is the model or its path, `folder` has its external data. `layers`, `caches` and
    `compute_type` are what the package says; none for a model of no package. `moh_nodes` has the
    name of each node that is to run on a kernel, and its operator. Nodes of domain `moh.dense` are
    not asked after: no kernel is registered for it. `has_float16` says that some nodes compute in
    that; `emulated_dtype` is as in `KernelUse`; `index_check` refuses indices that tables have no
    rows for; `buffers` has the outputs that may be the memory of an input, and these inputs.
    """

    content: str | bytes
    folder: Path
    layers: tuple[package.LayerInfo, ...]
    caches: package.CachesInPlace | None
    compute_type: package.ComputeType
    moh_nodes: dict[str, Operator]
    dense_nodes: dict[str, LayerImpl]
    routers: tuple[str | None, ...]
    layer_nodes: tuple[LayerNodes, ...]
    has_float16: bool
    emulated_dtype: str | None
    index_check: IndexCheck
    buffers: dict[str, str]

    def description(
        self, runtime: str, use: KernelUse, layer_impl: Mapping[str, LayerImpl], kernels: Kernels
    ) -> Description:
        """Say what runs each layer, as read from a runtime.

        Raises:
            BackendError: Kernels are required, and some node runs on none.
        """
        if kernels == "require":
            require_kernels(use, layer_impl)
        use = replace(use, num_bodies=list(layer_impl.values()).count("function"))
        runs = layer_runs(self.layers, layer_impl, routers=self.routers)
        return Description(runtime, use, layer_impl, runs, self.layer_nodes)


def prepare_model(
    source: package.OnnxPackage | Path,
    variant: Variant = AS_IT_IS,
    *,
    emulate_dtypes: Sequence[EmulatedDtype] = (),
) -> PreparedModel:
    """Read from the model all that is needed of it.

    The parsed model is dropped here: together with the session it would hold all weights twice.

    Args:
        source: A package, or the path of an ONNX model.
        variant: Says what is changed, and which inner values are returned besides the outputs.
        emulate_dtypes: What computes in the first of these that is used is emulated.

    Raises:
        BackendError: The name of an extra output is unknown.
        PackageError: The file is missing or not an ONNX model, or lacks the node of a layer.
    """
    if isinstance(source, package.OnnxPackage):
        path, manifest = source.model_path, source.manifest
        layers, caches, from_the_end = manifest.layers, manifest.caches, manifest.from_onnx
        compute_type = manifest.compute_type
    else:
        # Negative indices count from the end, as ONNX has it; see `table_lookups`.
        path, layers, caches, from_the_end, compute_type = source, (), None, True, "float32"
        package.read_outline(path)  # of a package that was done when it was opened
    # Edits may read weights; what they are made for is loaded as a whole. So is what is emulated.
    model = _load_without_data(path) if variant.edits else package.load_without_weights(path)
    moh_nodes = _nodes_of(KERNEL_DOMAIN, path, model.graph)
    dense_nodes = _nodes_of(DENSE_DOMAIN, path, model.graph)
    # Before any edit: an edit may take out a router, whose layer is still one of the package.
    routers, nodes = router_nodes(model.graph, layers), layer_nodes(model.graph, layers)
    for edit in variant.edits:
        edit(model.graph)
    index_check = IndexCheck(model, from_the_end=from_the_end)
    has_float16 = computes_in(model, "float16")
    # One dtype at most: the first that the model computes in.
    emulated = next((dtype for dtype in emulate_dtypes if computes_in(model, dtype)), None)
    if emulated is not None:
        model = model if variant.edits else _load_without_data(path)
        emulate(model, emulated)
    added = _outputs(model.graph, variant.extra_outputs)
    # An unchanged model is loaded by its path: nothing is serialised, and no copy of it is held.
    content: str | bytes = str(path)
    if variant.edits or emulated is not None:
        model.graph.output.extend(added)
        content = model.SerializeToString()
    elif added:
        # A message may come in parts: outputs behind the encoded model are appended to its graph.
        more = onnx.ModelProto(graph=onnx.GraphProto(output=added))
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            content = b"".join((data, more.SerializeToString()))
    return PreparedModel(
        content,
        path.parent,
        layers,
        caches,
        variant.compute_type or compute_type,
        moh_nodes,
        dict.fromkeys(dense_nodes, "dense"),
        routers,
        nodes,
        has_float16,
        emulated,
        index_check,
        written_buffers(model.graph),
    )


def _load_without_data(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def _outputs(graph: onnx.GraphProto, names: Sequence[str]) -> list[onnx.ValueInfoProto]:
    """Return what is to be declared for inner values to be outputs, too."""
    # Only values of the main graph can be outputs, not those within branches and functions.
    known = {name for node in graph.node for name in node.output}
    known |= {value.name for value in (*graph.input, *graph.initializer)}
    present = {output.name for output in graph.output}
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise BackendError(
            f"the model has no value '{unknown}', which was asked for as an extra output."
        )
    # ONNX Runtime infers type and shape.
    wanted = [name for name in dict.fromkeys(names) if name not in present]
    return [onnx.ValueInfoProto(name=name) for name in wanted]


def _nodes_of(domain: str, path: Path, graph: onnx.GraphProto) -> dict[str, Operator]:
    nodes = [node for node in all_nodes(graph) if base_domain(node.domain) == domain]
    for node in nodes:
        if not node.name:
            raise PackageError(
                f"{path}: a {node.op_type} node has no name, so what runs it cannot be told;"
                f" it computes '{node.output[0]}'."
            )
    return {node.name: Operator(node.domain, node.op_type) for node in nodes}
