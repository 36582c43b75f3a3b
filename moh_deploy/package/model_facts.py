"""Facts that both the manifest and model.onnx state: where they differ, a package is refused.

manifest                                  model.onnx
layers[i].num_heads, head_dim, kv_len     attributes and inputs of the layer's attention
layers[i].num_shared_heads, top_k         attributes of the MoHRouter that makes its gates
layers[i].router                          the operators that make its gates
layers[i].choice, ranges                  domains of its nodes
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import get_args

import onnx
from onnx import helper

from moh_deploy.config.dtypes import PRECISIONS
from moh_deploy.errors import PackageError
from moh_deploy.ops import OPS, op_names
from moh_deploy.ops.op_names import base_domain
from moh_deploy.package import graph_nodes
from moh_deploy.package.choices import node_rules
from moh_deploy.package.facts import StatedFact
from moh_deploy.package.interface import CachesInPlace, LayerInfo, TensorInfo
from moh_deploy.package.manifest import Manifest

_ATTENTIONS = get_args(op_names.AttentionOp)
_VIEWS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def model_facts(manifest: Manifest, model: onnx.ModelProto) -> list[StatedFact]:
    """Return the facts of a manifest that the model shows, in agreement or not.

    Args:
        manifest: The manifest.
        model: model.onnx; large weights need not have their data.

    Raises:
        PackageError: A node lacks inputs or attributes that its operator has.
    """
    try:
        return list(_facts(manifest, model))
    except (IndexError, KeyError, ZeroDivisionError) as error:
        raise PackageError(
            f"model.onnx has a node without what its operator needs ({type(error).__name__}:"
            f" {error}).",
            hint="Export the model again, or get the package again from where it was made.",
        ) from error


def _facts(manifest: Manifest, model: onnx.ModelProto) -> Iterator[StatedFact]:
    graph = model.graph
    versions = {opset.domain: opset.version for opset in model.opset_import}
    moh_ops = [function for function in model.functions if base_domain(function.domain)]
    yield StatedFact("opset", manifest.opset, versions.get(""))
    ops = {f"{item.domain}::{item.name}": versions.get(item.domain) for item in moh_ops}
    yield StatedFact("ops", manifest.ops, ops)
    view = _GraphView(graph)
    inputs = [info for info in graph.input if info.name in view.inputs]
    yield from _tensor_facts("inputs", manifest.inputs, inputs)
    yield from _tensor_facts("outputs", manifest.outputs, graph.output)
    yield from _precision_facts(manifest, graph)
    yield from _layer_facts(manifest, view)
    for index, node in enumerate(manifest.float32_nodes):
        is_there = node.name in view.names or node.name.removeprefix("-> ") in view.makers
        yield StatedFact(f"float32_nodes[{index}].name", node.name, node.name if is_there else None)
    if manifest.caches is not None:
        yield from _cache_facts(manifest.caches, view)


def _tensor_facts(
    kind: str, tensors: Sequence[TensorInfo], found: Sequence[onnx.ValueInfoProto]
) -> Iterator[StatedFact]:
    # Order counts: inputs may be given by position.
    names = [info.name for info in found]
    yield StatedFact(kind, [tensor.name for tensor in tensors], names)
    for index, (tensor, value) in enumerate(zip(tensors, found, strict=False)):
        key = f"{kind}[{index}]"
        yield StatedFact(f"{key}.dtype", tensor.dtype, _dtype_of(value.type.tensor_type.elem_type))
        # ONNX lets an output leave out its shape.
        if not value.type.tensor_type.HasField("shape"):
            continue
        shape = _shape_of(value)
        yield StatedFact(f"{key}.shape", f"{len(tensor.shape)} axes", f"{len(shape)} axes")
        for axis, (size, shown) in enumerate(zip(tensor.shape, shape, strict=False)):
            # Names of dynamic dimensions may differ; fixed sizes may not.
            if shown and (isinstance(size, int) or isinstance(shown, int)):
                yield StatedFact(f"{key}.shape[{axis}]", size, shown)


def _dtype_of(element: int) -> str | None:
    try:
        return str(helper.tensor_dtype_to_np_dtype(element).name)
    except KeyError:
        return None


def _shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return sizes and names of dimensions; an empty name for one that is not known."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]


# Operators to the precision that they show.
_FEW_BITS = {
    "MatMulInteger": "int8",
    "MatMulNBits": "int4",
    **{name: spec.weight.precision for name, spec in OPS.items() if spec.weight is not None},
}


def _precision_facts(manifest: Manifest, graph: onnx.GraphProto) -> Iterator[StatedFact]:
    """Hold against the model what would loosen the tolerance: a precision that nothing is in."""
    nodes, said = list(graph_nodes.all_nodes(graph)), manifest.precision
    operators = {node.op_type for node in nodes}
    in_few_bits = [_FEW_BITS[name] for name in operators & _FEW_BITS.keys()]
    if in_few_bits:
        yield StatedFact("precision", said, min(in_few_bits, key=[*PRECISIONS].index))
    # `bisect` may have put all that was lower into float32, where it computes on rounded weights.
    elif said not in ("float32", "float64") and not manifest.float32_nodes:
        declared = (*graph.input, *graph.output, *graph.value_info)
        elements = {value.type.tensor_type.elem_type for value in declared}
        elements |= {tensor.data_type for tensor in graph.initializer}
        attributes = [attribute for node in nodes for attribute in node.attribute]
        elements |= {attribute.i for attribute in attributes if attribute.name in ("to", "dtype")}
        elements |= {attribute.t.data_type for attribute in attributes if attribute.HasField("t")}
        is_there = said in map(_dtype_of, elements)
        yield StatedFact("precision", said, said if is_there else "float32")


class _GraphView:
    """The nodes and values of a graph, nodes that depend on sizes as if they stood in no branch.

    Attributes:
        makers: Value to the node that makes it.
        readers: Value to the nodes that read it.
        results: Name of a node to its first result.
        places: Name of a node of our domains to its domain, or to the rule for its domain.
        shapes: Value to sizes and names of dimensions, where the model declares them.
        inputs: Names of inputs, weights left out.
        values: Names of all values.
        names: Names of all nodes.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.results: dict[str, str] = {}
        rules = graph_nodes.switch_rules(graph)
        for node in graph.node:
            by_size = node.op_type == "If" and node.input[0].startswith(
                graph_nodes.CONDITION_PREFIX
            )
            # Its twin stands in the other branch, for the same inputs.
            branches = (
                {attribute.name: attribute.g for attribute in node.attribute} if by_size else {}
            )
            inner = branches["else_branch"].node[0] if by_size else node
            self.makers |= dict.fromkeys(node.output, inner)
            self.results[inner.name] = node.output[0] if node.output else ""
            for name in inner.input:
                self.readers.setdefault(name, []).append(inner)
        self.names = {node.name for node in graph_nodes.all_nodes(graph)}
        self.places = {
            node.name: rules.get(node.name, base_domain(node.domain))
            for node in self.makers.values()
            if base_domain(node.domain)
        }
        weights = {tensor.name for tensor in graph.initializer}
        weights |= {tensor.values.name for tensor in graph.sparse_initializer}
        # Before IR version 4 weights had to be inputs, too.
        self.inputs = {info.name for info in graph.input} - weights
        self.values = {*self.makers, *self.inputs, *weights}
        declared = (*graph.input, *graph.output, *graph.value_info)
        self.shapes = {value.name: _shape_of(value) for value in declared}
        self.shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}

    def node(self, name: str | None) -> onnx.NodeProto | None:
        """Return the node of ours that is called so."""
        return self.makers[self.results[name]] if name in self.places else None

    def root(self, value: str, views: Collection[str] = _VIEWS) -> str:
        """Return the value that another one is a view of."""
        seen = {""}  # a damaged graph may run in a circle
        while value not in seen and value in self.makers and self.makers[value].op_type in views:
            seen.add(value)
            value = self.makers[value].input[0]
        return value

    def sources(self, value: str) -> set[str]:
        """Return the nearest products with weights that a value is computed from, by result."""
        return {
            name
            for name, node in graph_nodes.computed_from(value, self.makers)
            if node.op_type in graph_nodes.CONTRACTIONS
            or (base_domain(node.domain) and not graph_nodes.is_router(node))
        }


_MAY_BE_UNKNOWN = ("op", "num_kv_heads", "head_dim", "kv_len")
"""Fields that earlier versions could leave open: what is not said contradicts nothing."""


def _layer_facts(manifest: Manifest, view: _GraphView) -> Iterator[StatedFact]:
    layers = manifest.layers
    routers = graph_nodes.router_nodes(view.graph, layers)
    for index, (layer, router) in enumerate(zip(layers, routers, strict=True)):
        for name, shown in (
            *_attention_shown(layer, view, manifest),
            *_router_shown(layer, view, router),
        ):
            said = getattr(layer, name)
            if said is not None or name not in _MAY_BE_UNKNOWN:
                yield StatedFact(name, said, shown, index)
        for name, rule in node_rules([layer]).items():
            place = f"{name}: {view.places.get(name)}"
            yield StatedFact(f"layers[{index}].choice", f"{name}: {rule}", place)
    # What no layer names would run, and nothing would judge it.
    named = {*routers, *(layer.node for layer in layers)}
    ours = [node for node in map(view.node, view.places) if node is not None]
    nodes = {
        node.name for node in ours if node.op_type in _ATTENTIONS or graph_nodes.is_router(node)
    }
    for name in sorted(nodes - named):
        yield StatedFact("layers", None, f"node {name}")


Shown = Iterator[tuple[str, object]]


def _attention_shown(layer: LayerInfo, view: _GraphView, manifest: Manifest) -> Shown:
    """Yield fields of a layer as its attention shows them."""
    # Readers fetch both by name.
    for name in ("gates", "attention"):
        value = getattr(layer, name)
        yield name, value if value is None or value in view.values else None
    if layer.node is None:
        return
    node = view.node(layer.node)
    if node is None or node.op_type not in _ATTENTIONS:
        yield "node", None
        return
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    heads = numbers.get("q_num_heads", numbers.get("num_heads", 0))
    yield "op", node.op_type
    yield "num_heads", heads
    yield "num_kv_heads", numbers.get("kv_num_heads", heads)
    query = view.shapes.get(node.input[0])
    if query and isinstance(query[-1], int):
        yield "head_dim", query[-1] if len(query) == 4 else query[-1] // heads
    is_window = node.op_type == op_names.AGGREGATED_ATTENTION
    window = numbers["kernel_height"] * numbers["kernel_width"] if is_window else 0
    keys = view.shapes.get(node.input[3 if is_window else 1])
    # Of a cache that is written in place, the keys are its whole buffer.
    if keys and manifest.caches is None:
        visible = _size_at(keys[2 if len(keys) == 4 else 1], manifest.dims)
        if visible is not None:
            yield "kv_len", visible + window
    # In mixed precision, queries may be cast on their way.
    maker = view.makers.get(view.root(node.input[0], ("Cast",)))
    projected = None if maker is None or not _is_projection(maker, _QUERY) else maker.name
    yield "query_projection", projected
    yield "output_projection", _output_projection(layer.node, view)


# However they store their weight.
_QUERY, _OUTPUT = (
    {op, *(name for name, spec in OPS.items() if spec.weight and spec.weight.plain == op)}
    for op in (op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)
)


def _is_projection(node: onnx.NodeProto, operators: Collection[str]) -> bool:
    return base_domain(node.domain) is not None and node.op_type in operators


def _output_projection(attention: str, view: _GraphView) -> str | None:
    """Return the projection that alone reads an attention, perhaps rearranged."""
    value, seen = view.results[attention], {""}
    while value not in seen and len(readers := view.readers.get(value, [])) == 1:
        seen.add(value)
        if _is_projection(readers[0], _OUTPUT):
            return readers[0].name
        if readers[0].op_type not in ("Cast", "Identity", "Reshape", "Transpose"):
            return None
        value = readers[0].output[0]
    return None


def _size_at(size: int | str, sizes: Mapping[str, int]) -> int | None:
    """Return a size, or a sum such as `past + seq`, at the example's sizes; None if not known."""
    terms = re.split(r"\s*\+\s*", str(size))
    known = [int(term) if term.isdecimal() else sizes.get(term) for term in terms]
    return None if None in known else sum(number or 0 for number in known)


def _router_shown(layer: LayerInfo, view: _GraphView, router: str | None) -> Shown:
    """Yield fields of a layer as the operators that make its gates show them."""
    # Constant gates are a weight, repeated for each sample.
    source = view.root(layer.gates, (*_VIEWS, "Expand"))
    is_constant = source not in view.makers and source not in view.inputs
    if is_constant or layer.router == "constant":
        yield "router", "constant" if is_constant else "custom"
    if not layer.router_replaced:
        return
    node = view.node(router)
    yield "router_replaced", node is not None
    if node is None:
        return
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    yield "num_shared_heads", numbers.get("num_shared_heads", 0)
    yield "top_k", numbers.get("top_k")
    form = _form(layer, node, view)
    if form is not None:
        yield "router", form


def _form(layer: LayerInfo, router: onnx.NodeProto, view: _GraphView) -> str | None:
    """Return the form of a router that a MoHRouter is part of; None if that is not clear."""
    routed, _, stage = (*router.input, "", "")[:3]
    if not routed:
        return "shared"
    if stage:
        return "two_stage"
    mode = {attribute.name: attribute.s for attribute in router.attribute}.get(
        "gate_mode", b"weighted"
    )
    behind = list(graph_nodes.computed_from(layer.gates, view.makers))
    own, scores = view.sources(layer.gates), view.sources(routed)
    # Shared heads come first: what weighs them is a constant, or made of logits of their own.
    if any(node.op_type == "Concat" and view.sources(node.input[0]) for _, node in behind):
        return "mixed"
    if mode == b"weighted":
        return "top_k"
    if view.root(routed) in {view.root(name) for name, _ in behind}:
        # What multiplies may be the very value that ranks: both forms have that.
        factors = {view.root(n) for _, node in behind if node.op_type == "Mul" for n in node.input}
        is_either = view.root(routed) in factors and layer.router == "scored"
        return "scored" if is_either else "ranked"
    if own:
        return "scored"
    if any(node.op_type not in _VIEWS for _, node in behind if not graph_nodes.is_router(node)):
        return None
    attention = view.node(layer.node)
    if attention is None:
        return None
    return "query_norm" if scores & view.sources(attention.input[0]) else "mask"


def _cache_facts(caches: CachesInPlace, view: _GraphView) -> Iterator[StatedFact]:
    for index, buffer in enumerate(caches.buffers):
        node = view.makers.get(view.root(buffer.present))
        written = node is not None and node.op_type == "TensorScatter"
        key = f"caches.buffers[{index}]"
        yield StatedFact(
            f"{key}.past", buffer.past, view.root(node.input[0]) if node and written else None
        )
        axis = {a.name: a.i for a in node.attribute}.get("axis", -2) if node and written else None
        yield StatedFact(f"{key}.axis", buffer.axis, axis)
