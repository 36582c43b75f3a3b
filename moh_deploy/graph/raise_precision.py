"""Turn a graph of lower precision into the same graph in float32: what `lower_precision` undoes.

What each node computed in is read off its types, so that the graph can be lowered again with other
nodes left in float32, whoever lowered it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.lower_precision.casts import IR_TYPES, NUMPY_TYPES, new_cast
from moh_deploy.graph.lower_precision.policy import SOURCES, LowType, is_lowered

_FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Raised:
    """The nodes that computed in low precision before a graph was raised, and its weights' origin.

    Attributes:
        low: First output of each node that computed in the lower precision.
        given: Weights that were replaced by those given.
        foreign: Weights whose given form does not round to the one in the graph, or is missing.
        modified: The graph had anything of that precision.
    """

    low: frozenset[str]
    given: tuple[str, ...]
    foreign: tuple[str, ...]
    modified: bool = True

    def __bool__(self) -> bool:
        return self.modified


def raise_precision(
    model: ir.Model, low: LowType, weights: Mapping[str, ir.TensorProtocol] | None = None
) -> Raised:
    """Compute in float32 all that computes in `low`, in place. Casts between the two vanish; inputs
    and outputs of the model keep their dtypes, and values their names.

    Args:
        model: Every value has a dtype.
        low: What the graph was lowered to.
        weights: Weights by name, in float32, for those that the graph has rounded. Those in the
            graph are taken as they are where this is None, or holds none that rounds to them.
    """
    return _Raise(model.graph, low, weights).apply()


@dataclass
class _Raise:
    graph: ir.Graph
    name: LowType
    weights: Mapping[str, ir.TensorProtocol] | None
    _given: list[str] = field(default_factory=list)
    _foreign: list[str] = field(default_factory=list)

    @property
    def low(self) -> ir.DataType:
        return IR_TYPES[self.name]

    def apply(self) -> Raised:
        modified = any(value.dtype == self.low for value in self._values())
        # First what computed in it, while types still say so; then the borders of the model, the
        # Casts inside, and at last the types of all that is left.
        computed = [node for node in self.graph if self._computes_low(node)]
        # Inputs and outputs keep their dtypes, by casts that stay.
        interface = [*self._enter(), *self._leave()]
        # Casts between the two have nothing left to convert.
        for node in list(self.graph):
            if node not in interface and self._only_converts(node):
                self._drop(node)
        # Subgraphs too: branches read values of the graph around them.
        for graph in (self.graph, *self.graph.subgraphs()):
            self._retype(graph, interface)
        low = frozenset(node.outputs[0].name or "" for node in (*computed, *interface))
        return Raised(low, tuple(self._given), tuple(self._foreign), modified)

    def _values(self) -> Iterator[ir.Value]:
        yield from self.graph.inputs
        for graph in (self.graph, *self.graph.subgraphs()):
            yield from graph.initializers.values()
            yield from (value for node in graph for value in node.outputs)

    def _computes_low(self, node: ir.Node) -> bool:
        if node.op_type in SOURCES or self._only_converts(node):
            return False
        # A mask, say, has a dtype of its own and takes no part.
        read = [value for i, value in enumerate(node.inputs) if is_lowered(node, i)]
        return any(
            value is not None and value.dtype == self.low for value in (*read, *node.outputs)
        )

    def _only_converts(self, node: ir.Node) -> bool:
        """A Cast between float32 and the lower precision."""
        if node.op_type != "Cast" or node.inputs[0] is None:
            return False
        return {node.inputs[0].dtype, node.outputs[0].dtype} <= {_FLOAT, self.low}

    def _enter(self) -> Iterator[ir.Node]:
        """Cast inputs of the model that are low."""
        for value in [value for value in self.graph.inputs if value.dtype == self.low]:
            cast = new_cast(value, _FLOAT, f"{value.name}.float32")
            # All readers, the new Cast included, which is given back its input in the next line.
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            cast.replace_input_with(0, value)
            self.graph.insert_before(self.graph[0], cast)
            yield cast

    def _leave(self) -> Iterator[ir.Node]:
        """Cast outputs of the model that are low."""
        for index, value in enumerate(self.graph.outputs):
            if value.dtype != self.low:
                continue
            name = value.name or ""
            value.name = f"{name}.float32"
            cast = new_cast(value, self.low, name)
            self.graph.append(cast)
            self.graph.outputs[index] = cast.outputs[0]
            yield cast

    def _drop(self, cast: ir.Node) -> None:
        source, made = cast.inputs[0], cast.outputs[0]
        assert source is not None
        # The output's name is the user's: the value that takes over has to take the name, too.
        if made in set(self.graph.outputs):
            if source.producer() is None or source in set(self.graph.outputs):
                return  # The output is an input, a weight or another output: it needs a node.
            # The output keeps its name: it goes to the value in front of the Cast.
            name = made.name
            made.name = f"{name}.cast"
            source.name = name
        ir.convenience.replace_all_uses_with(made, source, replace_graph_outputs=True)
        self.graph.remove(cast, safe=True)

    def _retype(self, graph: ir.Graph, interface: list[ir.Node]) -> None:
        for value in list(graph.initializers.values()):
            if value.dtype == self.low:
                self._raise_weight(graph, value)
        for node in graph:
            if node in interface:
                continue
            self._raise_attributes(node)
            for value in node.outputs:
                if value.dtype == self.low:
                    value.dtype = _FLOAT

    def _raise_weight(self, graph: ir.Graph, value: ir.Value) -> None:
        weight, stored = value.const_value, value.name or ""
        assert weight is not None
        # Lowering made `name.float16` of a weight `name`.
        name = stored.removesuffix(f".{self.name}")
        tensor = self._float32_of(name, weight)
        value.dtype = _FLOAT
        if name not in graph.initializers:
            value.name = name
        # Converted when it is written: two forms of all weights at once would be three times the
        # memory.
        value.const_value = ir.LazyTensor(
            tensor, dtype=_FLOAT, shape=ir.Shape(weight.shape.numpy()), name=value.name
        )

    def _float32_of(self, name: str, weight: ir.TensorProtocol) -> Callable[[], ir.TensorProtocol]:
        given = None if self.weights is None else self.weights.get(name)
        # Only what rounds to the stored numbers is the weight that these were made from.
        if given is not None and self._rounds_to(given, weight):
            self._given.append(name)
            return lambda: ir.Tensor(given.numpy(), dtype=_FLOAT, name=name)
        # Reported: these keep their rounding, and the reference does not explain them.
        if self.weights is not None:
            self._foreign.append(name)
        return lambda: ir.Tensor(weight.numpy().astype(np.float32), dtype=_FLOAT, name=name)

    def _rounds_to(self, given: ir.TensorProtocol, weight: ir.TensorProtocol) -> bool:
        if given.dtype != _FLOAT or given.shape != weight.shape:
            return False
        # Beyond the range of float16 the stored number is infinite, too.
        with np.errstate(over="ignore"):
            rounded = given.numpy().astype(NUMPY_TYPES[self.name])
        # By bytes: NaN equals NaN, and -0 is not 0.
        return rounded.tobytes() == weight.numpy().tobytes()

    def _raise_attributes(self, node: ir.Node) -> None:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if tensor.dtype == self.low:
                    raised = ir.tensor(tensor.numpy().astype(np.float32), name=tensor.name)
                    node.attributes[name] = ir.AttrTensor(name, raised)
            # Cast, and operators that make numbers of a given dtype.
            elif name in ("to", "dtype") and attribute.value == self.low.value:
                node.attributes[name] = ir.AttrInt64(name, _FLOAT.value)
