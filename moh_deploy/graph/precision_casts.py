"""Give every value of a graph its dtype, with a Cast wherever a reader wants another one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moh_deploy.graph.precision_policy import SOURCES, LowType, PrecisionPlan, is_lowered
from moh_deploy.package import CachesInPlace

_FLOAT = ir.DataType.FLOAT
IR_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
NUMPY_TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# Outputs beyond the first are statistics, which stay in float32 (`stash_type`).
_STATISTICS = ("LayerNormalization", "RMSNormalization")


def lower_precision(model: ir.Model, plan: PrecisionPlan) -> bool:
    """Type the graph as planned. Inputs and outputs of the model keep their dtypes, and every value
    keeps its name; a Cast adds new ones.

    Args:
        model: All floats are float32. Its functions fit every dtype.
        plan: For every node of the graph.
    """
    return _Casts(model.graph, plan).apply()


@dataclass
class _Casts:
    graph: ir.Graph
    plan: PrecisionPlan
    _made: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    @property
    def low(self) -> ir.DataType:
        return IR_TYPES[self.plan.low]

    def apply(self) -> bool:
        # `wanted` is what a node computes in, `produced` what its results then are. Types are
        # written last: until then FLOAT on a value means that it takes part.
        nodes = [
            node
            for node in self.graph
            if any(v is not None and v.dtype == _FLOAT for v in (*node.inputs, *node.outputs))
        ]
        wanted = {node: _FLOAT if self.plan.stays_float32(node) else self.low for node in nodes}
        # Output to the dtype that its node makes; a value that is not here keeps its own.
        produced = {
            output: wanted[node]
            for node in nodes
            for index, output in enumerate(node.outputs)
            if output.dtype == _FLOAT
            and node.op_type != "Cast"
            and (index == 0 or node.op_type not in _STATISTICS)
        }
        for node in nodes:
            for index, value in enumerate(node.inputs):
                # Inputs that take part get the node's dtype, all others stay in float32.
                if value is not None and value.dtype == _FLOAT:
                    want = wanted[node] if is_lowered(node, index) else _FLOAT
                    have = produced.get(value, _FLOAT)
                    node.replace_input_with(index, self._in(value, have, want))
        # Branches are not planned, so they read what they were written for.
        for value in [value for value, dtype in produced.items() if dtype != _FLOAT]:
            for node, index in list(value.uses()):
                if node.graph is not self.graph:
                    node.replace_input_with(index, self._in(value, self.low, _FLOAT))
        for index, output in enumerate(self.graph.outputs):
            if produced.get(output) == self.low:
                name = output.name
                # The output keeps name and dtype; the low value behind it gets another name.
                original = self._in(output, self.low, _FLOAT)
                output.name = f"{name}.{self.plan.low}"
                original.name = name
                self.graph.outputs[index] = original
        # Last, since the checks above ask for float32.
        for value, dtype in produced.items():
            value.dtype = dtype
        # The float32 weight is gone once every reader has the low one.
        outputs, weights = set(self.graph.outputs), self.graph.initializers
        unread = [n for n, value in weights.items() if not value.uses() and value not in outputs]
        for name in unread:
            del weights[name]
        return bool(unread) or bool(self._made) or self.low in produced.values()

    def _in(self, value: ir.Value, have: ir.DataType, want: ir.DataType) -> ir.Value:
        """Return the value in the wanted dtype."""
        if have == want:
            return value
        # One Cast for all readers; a weight is converted in the file and needs none.
        if (value, want) in self._made:
            return self._made[value, want]
        weight = value.const_value if value.is_initializer() else None
        if weight is None:
            cast = new_cast(value, want, f"{value.name}.{want.numpy()!s}")
            producer = value.producer()
            # An input of the model: its Cast comes before all readers.
            if producer is None:
                self.graph.insert_before(self.graph[0], cast)
            else:
                self.graph.insert_after(producer, cast)
            made = cast.outputs[0]
        else:
            tensor = _low_weight(weight, self.plan.low, f"{value.name}.{self.plan.low}")
            made = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(self.low))
            made.const_value = tensor
            self.graph.register_initializer(made)
        self._made[value, want] = made
        return made


def new_cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    """Return a Cast that makes a value of this name; it is in no graph yet."""
    cast = ir.node("Cast", [value], {"to": to}, name=f"{name}.Cast")
    made = cast.outputs[0]
    made.name, made.dtype, made.shape = name, to, value.shape
    return cast


def _low_weight(weight: ir.TensorProtocol, low: LowType, name: str) -> ir.LazyTensor:
    """Return a weight that is converted when it is written, one after the other."""

    def convert() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):  # Infinite where the dtype has no room for it.
            array = weight.numpy().astype(NUMPY_TYPES[low])
        return ir.Tensor(array, dtype=IR_TYPES[low], name=name)

    shape = ir.Shape(weight.shape.numpy())
    return ir.LazyTensor(convert, dtype=IR_TYPES[low], shape=shape, name=name)


# Turn a graph of lower precision into the same graph in float32: what `lower_precision` undoes.
#
# What each node computed in is read off its types, so that the graph can be lowered again with
# other nodes left in float32 by an earlier lowering.


@dataclass(frozen=True)
class Raised:
    """Nodes that computed in low precision before a graph was raised, and its weights' origin."""

    low: frozenset[str]  # first output of each node that computed in the lower precision
    given: tuple[str, ...]  # weights that were replaced by those given
    # Weights whose given form does not round to the one in the graph, or is missing.
    foreign: tuple[str, ...]
    modified: bool = True  # the graph had anything of that precision

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
            graph are taken as they are where this is None, or lacks weights that round to them.
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
        graphs = (self.graph, *self.graph.subgraphs())
        values = [value for graph in graphs for value in graph.initializers.values()]
        values += [value for graph in graphs for node in graph for value in node.outputs]
        modified = any(value.dtype == self.low for value in (*self.graph.inputs, *values))
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
        for graph in graphs:
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
        low = frozenset(node.outputs[0].name or "" for node in (*computed, *interface))
        return Raised(low, tuple(self._given), tuple(self._foreign), modified)

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


# Keep the caches of a model in lower precision in that precision, from call to call.
#
# A model's inputs and outputs keep their dtypes when it is lowered, so that a cache in float32
# would be cast as a whole, twice in every call, and be written into a copy.


def narrow_caches(model: ir.Model, caches: CachesInPlace) -> dict[str, str]:
    """Take away the casts between caches and what is written into them.

    Returns:
        The name of each input and output whose dtype that changed, to its dtype now.
    """
    graph, changed = model.graph, dict[str, str]()
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    for buffer in caches.buffers:
        past, present = inputs[buffer.past], outputs[buffer.present]
        widened, narrowed = present.producer(), [node for node, _ in past.uses()]
        if widened is None or not _is_cast(widened) or not all(map(_is_cast, narrowed)):
            continue
        if present.uses():  # by what stays in float32
            continue
        written = widened.inputs[0]
        (low,) = {node.outputs[0].dtype for node in narrowed}
        if written is None or written.dtype != low or low is None:
            continue
        past.dtype = low
        for node in narrowed:
            node.outputs[0].replace_all_uses_with(past)
            graph.remove(node, safe=True)
        # The output keeps its name.
        graph.outputs[graph.outputs.index(present)] = written
        graph.remove(widened, safe=True)
        written.name = buffer.present
        changed |= dict.fromkeys((buffer.past, buffer.present), str(low.numpy()))
    return changed


def _is_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and not node.domain
