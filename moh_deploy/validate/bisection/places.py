"""Place the nodes of a model: the module that each computes for, and the values it leads to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from moh_deploy.graph.forced_gates import GateTypes, force_gates, forced_gates
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.package import LayerInfo, OnnxPackage, VectorSet
from moh_deploy.package.graph_nodes import CONDITION_PREFIX, reads
from moh_deploy.runtime.base import FUNCTION_BODIES, GraphEdit, Runner, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants, gates_fed
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.differences import abs_error, largest, largest_finite

Reached = frozenset[int]
"""Places of nodes in `ModelGraph.nodes`."""


@dataclass(frozen=True)
class NodePlace:
    """The place of a node."""

    node: str  # its name; for a node without one, what it makes
    op: str  # its operator
    module: str  # path of the module that it computes for
    value: str  # its first output

    def __str__(self) -> str:
        return f"{self.op} '{self.node}' in '{self.module}'"


@dataclass(frozen=True)
class ModelGraph:
    """A graph and the layers in it."""

    # Its nodes stand in an order in which they can run, except those that feed gates, which come
    # last.
    graph: onnx.GraphProto
    layers: Sequence[LayerInfo] = ()  # those of the package
    # The graph as the package has it, if gates are fed to this one: routers lead nowhere here, so
    # this one does not tell whose they are.
    written: ModelGraph | None = None

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        return tuple(self.graph.node)

    @cached_property
    def makers(self) -> Mapping[str, int]:
        """Value to the place of the node that makes it."""
        return {name: i for i, node in enumerate(self.nodes) for name in node.output if name}

    @property
    def own(self) -> int:
        """The number of nodes without those that feed gates."""
        # Nodes that feed gates come last, so the package's own are the first so many.
        return len(self.nodes if self.written is None else self.written.nodes)

    def place(self, index: int) -> NodePlace:
        """Return where one of the package's own nodes is."""
        if self.written is not None:
            return self.written.place(index)
        node = what_runs(self.nodes[index])
        value = next(name for name in self.nodes[index].output if name)
        # A layer's node is known from the manifest, others by their names:
        # `blocks.0.attn.MatMul#2`.
        paths = [layer.path for layer in self.layers if node.name and node.name == layer.node]
        named = re.fullmatch(rf"(?P<module>.+)\.{re.escape(node.op_type)}(#\d+)?", node.name)
        if not paths and named is not None:
            paths = [named["module"]]
        module = paths[0] if paths else self._nearest_layer(index) or "model"
        return NodePlace(node.name or f"-> {value}", node.op_type, module, value)

    def before(self, *values: str) -> Reached:
        """Return the nodes that values are made of."""
        found: set[int] = set()
        waiting = [self.makers[name] for name in values if name in self.makers]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                # Including what the branches of an If read from outside.
                names = reads(self.nodes[index])
                waiting += [self.makers[name] for name in names if name in self.makers]
        return frozenset(found)

    def _nearest_layer(self, index: int) -> str | None:
        """Return the layer that a node without a telling name helps, or else that it is behind.

        What is before all of a layer's queries, keys and values belongs to the one before it.
        """
        behind = None
        for layer, anchor, inputs in self._anchors:
            if index in anchor:
                # Before queries, keys and values alike: the norm in front of the layer, or a block
                # before it.
                shared = all(index in group for group in inputs)
                return behind if shared and behind is not None else layer.path
            if self.makers.get(layer.gates) in self.before(*reads(self.nodes[index])):
                behind = layer.path
        return behind

    @cached_property
    def _anchors(self) -> list[tuple[LayerInfo, Reached, list[Reached]]]:
        found = []
        by_name = {node.name: node for node in self.nodes if node.name}
        for layer in self.layers:
            attention = by_name.get(layer.node or "")
            names = [layer.gates] if attention is None else list(attention.input)
            made = [] if attention is None else attention.output
            # Of an MoH attention node the first three inputs are queries, keys and values.
            inputs = [self.before(name) for name in names[:3]]
            found.append((layer, self.before(*names, *made), inputs))
        return found


def what_runs(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return the node of a layer for the `If` that chooses by size how it is run."""
    if node.op_type != "If" or not node.input[0].startswith(CONDITION_PREFIX):
        return node
    graphs = {attribute.name: attribute.g for attribute in node.attribute}
    # Both branches hold the layer; see `switch_by_size`.
    inner: onnx.NodeProto = graphs["else_branch"].node[0]
    return inner


# A package as it is bisected: with the reference gates fed to it, and its inner values to see.

# Runtimes may compute float16 in float32 in between, and hide where rounding does harm.
_AS_WRITTEN = replace(FUNCTION_BODIES, round_results=True)


@dataclass(frozen=True)
class ForcedModel:
    """A package that is run with its gates fed to it."""

    package: OnnxPackage  # its model and layers
    # Name of each layer's gates to the dtype that they are fed in; empty where they cannot be fed.
    gates: GateTypes
    # How it is opened otherwise: as it is written, unless asked for otherwise, with every result in
    # float16 rounded.
    variant: Variant = _AS_WRITTEN

    @classmethod
    def of(cls, package: OnnxPackage, vectors: Sequence[VectorSet]) -> ForcedModel:
        """Find out what the gates are fed as, by a run."""
        layers = package.manifest.layers
        # A run whose gates were not recorded cannot feed them.
        known = vectors and all(len(vector_set.gates) == len(layers) for vector_set in vectors)
        if not layers or not known or PackageVariants(package).why_not_forced() is not None:
            return cls(package, {})
        names = package.gate_names
        runner = open_runner(package, FUNCTION_BODIES.returning(names))
        # The dtype of an inner value is not always declared, so it is read from a run.
        results = runner.run(vectors[0].inputs)
        return cls(package, {name: results[name].dtype for name in names})

    def run_as(self, kernels: Kernels, *, optimize: bool) -> ForcedModel:
        """Return it as a runtime runs it that may round less than the graph says."""
        return replace(self, variant=Variant(kernels=kernels, optimize=optimize))

    def open(self, names: Sequence[str] = (), edits: Sequence[GraphEdit] = ()) -> Runner:
        """Open it so that it returns these inner values, and what the routers compute.

        Args:
            names: The inner values.
            edits: Changes of the graph, once its gates are inputs.
        """
        fed = gates_fed(self.variant, self.gates, names)
        return open_runner(self.package, fed.edited(*edits))

    def value_types(self) -> dict[str, int]:
        """Return the dtypes of values as they are numbered in ONNX, of those that are known."""
        # Shapes are inferred from the graph alone; weights outside of it stay on disk.
        graph = onnx.shape_inference.infer_shapes(self._model()).graph
        known = (*graph.value_info, *graph.output)
        types = {item.name: item.type.tensor_type.elem_type for item in known}
        return {name: dtype for name, dtype in types.items() if dtype}

    def value_dims(self) -> dict[str, tuple[int | str, ...]]:
        """Return how the axes of values are called, of those that the model declares."""
        graph = self._model().graph
        return {
            output.name: tuple(
                axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim
            )
            for output in (*graph.value_info, *graph.output)
            if output.type.tensor_type.HasField("shape")
        }

    def inputs(self, vectors: VectorSet) -> dict[str, Array]:
        """Return the inputs for a runner of `open`: the model's, and the gates."""
        if not self.gates:
            return dict(vectors.inputs)
        # Recorded gates are in the original's dtype, and the graph's may be lower.
        pairs = zip(self.package.manifest.layers, vectors.gates, strict=True)
        fed = {
            forced_gates(layer.gates): gates.astype(self.gates[layer.gates])
            for layer, gates in pairs
        }
        return {**vectors.inputs, **fed}

    def graph(self) -> onnx.GraphProto:
        """Return the graph as it is run, without its weights if they are stored outside."""
        graph = self._model().graph
        if self.gates:
            force_gates(graph, self.gates)
        return graph

    def functions(self) -> Sequence[onnx.FunctionProto]:
        """Return the function bodies."""
        return list(self._model().functions)

    def _model(self) -> onnx.ModelProto:
        return onnx.load(self.package.model_path, load_external_data=False)


def graph_of(model: ForcedModel) -> ModelGraph:
    """Return the graph of a package as it is run, whose nodes are placed as it is written."""
    layers = model.package.manifest.layers
    # With gates fed, routers lead nowhere, so modules are told by the graph as it is written.
    written = ModelGraph(replace(model, gates={}).graph(), layers)
    return ModelGraph(model.graph(), layers, written)


# Compare a node with its counterpart in a reference: operator, attributes, inputs, weights.


@dataclass(frozen=True)
class WeightedGraph:
    """A graph, and where its weights are."""

    places: ModelGraph  # the graph
    root: Path  # its directory
    functions: Sequence[onnx.FunctionProto] = ()  # those of its model: bodies of operators
    # The graph that this one is a branch or a body in; None for the model's own.
    outer: WeightedGraph | None = None

    @cached_property
    def _weights(self) -> Mapping[str, onnx.TensorProto]:
        return {initializer.name: initializer for initializer in self.places.graph.initializer}

    def weight(self, name: str) -> Array | None:
        tensor = self._weights.get(name)
        if tensor is None:
            # Branches read names of the graph around them.
            return None if self.outer is None else self.outer.weight(name)
        return onnx.numpy_helper.to_array(tensor, str(self.root))

    def maker(self, value: str) -> onnx.NodeProto | None:
        index = self.places.makers.get(value)
        return None if index is None else self.places.nodes[index]

    def maker_text(self, value: str) -> str:
        node = self.maker(value)
        return f"'{value}'" if node is None else f"'{value}' (of {node.op_type})"

    def within(self, graph: onnx.GraphProto) -> WeightedGraph:
        """Return a branch or body of one of its nodes."""
        return WeightedGraph(ModelGraph(graph), self.root, self.functions, self)

    def body(self, node: onnx.NodeProto) -> bytes | None:
        """Return the function body of a node, to be compared; None for an operator without."""
        for function in self.functions:
            of = function.domain, function.name, function.overload
            if of == (node.domain, node.op_type, node.overload):
                body = onnx.FunctionProto.FromString(function.SerializeToString())
                body.domain = ""  # It says which of several bodies this is.
                return bytes(body.SerializeToString(deterministic=True))
        return None


def node_differences(
    tested: WeightedGraph, reference: WeightedGraph, value: str
) -> tuple[str, ...]:
    """Return sentences on how the nodes that make a value differ in the two graphs.

    Nothing where they are the same, or one of them does not make it; but a Cast changes numbers.
    """
    ours, theirs = tested.maker(value), reference.maker(value)
    if ours is None:
        return ()
    # Values without a counterpart are no finding by themselves: the graphs may be cut differently.
    if theirs is None:
        return ("the reference has no such cast",) if ours.op_type == "Cast" else ()
    # MoH domains, with kernels or not, count as one.
    operators = [
        (KERNEL_DOMAIN if base_domain(node.domain) else node.domain, node.op_type)
        for node in (ours, theirs)
    ]
    if operators[0] != operators[1]:
        return (f"it is {ours.op_type}, in the reference {theirs.op_type}",)
    found = (
        *_attributes(tested, reference, ours, theirs),
        *_inputs(tested, reference, ours, theirs),
    )
    same = tested.body(ours) == reference.body(theirs)
    return found if same else (*found, "its function body differs")


def _attributes(
    tested: WeightedGraph, reference: WeightedGraph, ours: onnx.NodeProto, theirs: onnx.NodeProto
) -> Iterator[str]:
    mine, other = (
        {attribute.name: attribute for attribute in node.attribute} for node in (ours, theirs)
    )
    for name in dict.fromkeys((*mine, *other)):
        if mine.get(name) == other.get(name):
            continue
        said = (
            f"attribute {name} is {_attribute_text(mine.get(name))},"
            f" the reference's {_attribute_text(other.get(name))}"
        )
        # Two branches that differ are not worth printing, but their first differing node is.
        if name in mine and name in other and mine[name].HasField("g"):
            inner = _in_graphs(tested.within(mine[name].g), reference.within(other[name].g))
            said = f"in its {name}, {inner}" if inner else said
        yield said


def _in_graphs(tested: WeightedGraph, reference: WeightedGraph) -> str:
    """Return the first difference of a branch or body, and which node's; empty if none is known."""
    for index, node in enumerate(tested.places.nodes):
        for said in node_differences(tested, reference, node.output[0]):
            place = tested.places.place(index)
            return f"{place.op} '{place.node}': {said}"
    return ""


def _attribute_text(attribute: onnx.AttributeProto | None) -> str:
    if attribute is None:
        return "left out"
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, int | list) else "another one"


def _inputs(
    tested: WeightedGraph, reference: WeightedGraph, ours: onnx.NodeProto, theirs: onnx.NodeProto
) -> Iterator[str]:
    if len(ours.input) != len(theirs.input):
        yield f"it reads {len(ours.input)} values, the reference {len(theirs.input)}"
    for mine, other in zip(ours.input, theirs.input, strict=False):
        got, expected = tested.weight(mine), reference.weight(other)
        if got is None or expected is None:
            # Weights may be renamed and hold the same numbers; other values are told by names.
            if mine != other:
                theirs_text = reference.maker_text(other)
                yield f"it reads {tested.maker_text(mine)}, the reference {theirs_text}"
        elif got.shape != expected.shape:
            yield (
                f"weight '{mine}' is of shape {list(got.shape)}, the reference's '{other}'"
                f" {list(expected.shape)}"
            )
        # Bytes, not `==`: NaN equals NaN here, and -0 does not equal 0.
        elif got.tobytes() != expected.tobytes():
            size = largest_finite(expected)
            share = largest(abs_error(got, expected)) / size if size else np.inf
            which = f"'{mine}'" if mine == other else f"'{mine}', in the reference '{other}',"
            yield (
                f"weight {which} holds NaN where the other has a number"
                if np.isnan(share)
                else f"weight {which} differs by up to {share:.2g} of its largest value"
            )
