"""Give every value of a graph its dtype, with a Cast wherever a reader wants another one."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from moh_deploy.graph.lower_precision.policy import LowType, PrecisionPlan, is_lowered

_FLOAT = ir.DataType.FLOAT
IR_TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
NUMPY_TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

# Outputs beyond the first are statistics, which stay in float32 (`stash_type`).
_STATISTICS = ("LayerNormalization", "RMSNormalization")


def lower_precision(model: ir.Model, plan: PrecisionPlan) -> bool:
    """Type the graph as planned. Inputs and outputs of the model keep their dtypes, and every value
    keeps its name, but for those that a Cast adds.

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
        nodes = [node for node in self.graph if self._has_floats(node)]
        wanted = {node: _FLOAT if self.plan.stays_float32(node) else self.low for node in nodes}
        # Output to the dtype that its node makes; a value that is not here keeps its own.
        produced = {
            output: wanted[node]
            for node in nodes
            for index, output in enumerate(node.outputs)
            if output.dtype == _FLOAT and self._is_typed_by_node(node, index)
        }
        for node in nodes:
            for index, value in enumerate(node.inputs):
                # Inputs that take part get the node's dtype, all others stay in float32.
                if value is not None and value.dtype == _FLOAT and is_lowered(node, index):
                    have = produced.get(value, _FLOAT)
                    node.replace_input_with(index, self._in(value, have, wanted[node]))
                elif value is not None and value.dtype == _FLOAT:
                    have = produced.get(value, _FLOAT)
                    node.replace_input_with(index, self._in(value, have, _FLOAT))
        self._read_by_subgraphs(produced)
        self._keep_outputs(produced)
        # Last, since the checks above ask for float32.
        for value, dtype in produced.items():
            value.dtype = dtype
        dropped = self._drop_unread_weights()
        return dropped or bool(self._made) or self.low in produced.values()

    @staticmethod
    def _has_floats(node: ir.Node) -> bool:
        return any(value is not None and value.dtype == _FLOAT for value in node.inputs) or any(
            value.dtype == _FLOAT for value in node.outputs
        )

    @staticmethod
    def _is_typed_by_node(node: ir.Node, index: int) -> bool:
        return node.op_type != "Cast" and (index == 0 or node.op_type not in _STATISTICS)

    def _in(self, value: ir.Value, have: ir.DataType, want: ir.DataType) -> ir.Value:
        """Return the value in the wanted dtype."""
        if have == want:
            return value
        # One Cast for all readers; a weight is converted in the file and needs none.
        if (value, want) not in self._made:
            weight = value.const_value if value.is_initializer() else None
            made = self._cast(value, want) if weight is None else self._weight(value, weight)
            self._made[value, want] = made
        return self._made[value, want]

    def _cast(self, value: ir.Value, want: ir.DataType) -> ir.Value:
        name = f"{value.name}.{want.numpy()!s}"
        cast = new_cast(value, want, name)
        producer = value.producer()
        # An input of the model: its Cast comes before all readers.
        if producer is None:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(producer, cast)
        return cast.outputs[0]

    def _weight(self, value: ir.Value, weight: ir.TensorProtocol) -> ir.Value:
        name = f"{value.name}.{self.plan.low}"
        tensor = _low_weight(weight, self.plan.low, name)
        made = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(self.low))
        made.const_value = tensor
        self.graph.register_initializer(made)
        return made

    def _read_by_subgraphs(self, produced: dict[ir.Value, ir.DataType]) -> None:
        """Keep in float32 what an inner graph reads of this one."""
        # Branches are not planned, so they read what they were written for.
        for value in [value for value, dtype in produced.items() if dtype != _FLOAT]:
            for node, index in list(value.uses()):
                if node.graph is not self.graph:
                    node.replace_input_with(index, self._in(value, self.low, _FLOAT))

    def _keep_outputs(self, produced: dict[ir.Value, ir.DataType]) -> None:
        for index, output in enumerate(self.graph.outputs):
            if produced.get(output, output.dtype) == self.low and output.dtype == _FLOAT:
                name = output.name
                # The output keeps name and dtype; the low value behind it gets another name.
                original = self._in(output, self.low, _FLOAT)
                output.name = f"{name}.{self.plan.low}"
                original.name = name
                self.graph.outputs[index] = original

    def _drop_unread_weights(self) -> bool:
        outputs, weights = set(self.graph.outputs), self.graph.initializers
        # The float32 weight is gone once every reader has the low one.
        unread = [n for n, value in weights.items() if not value.uses() and value not in outputs]
        for name in unread:
            del weights[name]
        return bool(unread)


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
