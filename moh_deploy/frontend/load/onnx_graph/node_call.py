"""Nodes of an ONNX graph, and the values that the function of an operator is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias, TypeVar, cast

import numpy as np
import onnx
import onnx_ir as ir
import torch

from moh_deploy.errors import CheckpointError, ExportError
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain

# One node of an ONNX graph, without protobuf.


@dataclass(frozen=True)
class Node:
    """An operator with the names of what it reads and writes."""

    name: str
    domain: str  # empty for the standard operators
    op_type: str
    inputs: tuple[str, ...]  # names; empty for an optional input that is left out
    outputs: tuple[str, ...]  # names; empty for an unread output
    attributes: dict[str, object] = field(repr=False)  # numbers, texts, tuples of them, and tensors
    # The graphs among its attributes: `then_branch`, `else_branch`, `body`.
    bodies: dict[str, Graph] = field(repr=False)
    # Names of the modules that it was exported from, outermost first, as far as the exporter tells.
    scope: tuple[str, ...]
    _source: ir.Node = field(repr=False)

    def alone(self, version: int) -> bytes:
        """Return a ModelProto of the node alone, whose inputs have no types.

        Args:
            version: Of the node's domain.
        """
        proto = ir.to_proto(self._source)
        graph = onnx.helper.make_graph(
            [proto],
            "node",
            [onnx.ValueInfoProto(name=name) for name in self.inputs if name],
            [onnx.ValueInfoProto(name=name) for name in self.outputs if name],
        )
        domains = {"": 20, self.domain: version}
        imports = [onnx.helper.make_opsetid(*domain) for domain in domains.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
        return bytes(model.SerializeToString())

    @property
    def operator(self) -> str:
        """Return `Softmax`, or `com.microsoft.Attention`."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    @property
    def place(self) -> str:
        """Return `node '/layers.0/Softmax' (Softmax)`; a node without a name by its output."""
        named = self.name or next(filter(None, self.outputs), "")
        return f"node '{named}' ({self.operator})"


@dataclass(frozen=True)
class Graph:
    """A graph, or the body of a node."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    # Name to tensor; their data may still lie in the file.
    weights: dict[str, ir.TensorProtocol] = field(repr=False)
    nodes: tuple[Node, ...] = field(repr=False)  # in an order in which they can run

    def all_nodes(self) -> list[Node]:
        """Return the nodes of the graph and of all bodies in it."""
        found: list[Node] = []
        for node in self.nodes:
            found.append(node)
            for body in node.bodies.values():
                found += body.all_nodes()
        return found


def plain_graph(graph: ir.Graph) -> Graph:
    """Return a graph of onnx_ir as plain data.

    Raises:
        CheckpointError: A node has an attribute of a kind that no operator here has.
    """
    return Graph(
        inputs=tuple(value.name or "" for value in graph.inputs),
        outputs=tuple(value.name or "" for value in graph.outputs),
        weights={
            name: value.const_value
            for name, value in graph.initializers.items()
            if value.const_value is not None
        },
        nodes=tuple(_node(node) for node in graph),
    )


_IR_VERSION = 10
_PLAIN = {
    ir.AttributeType.FLOAT,
    ir.AttributeType.INT,
    ir.AttributeType.STRING,
    ir.AttributeType.FLOATS,
    ir.AttributeType.INTS,
    ir.AttributeType.STRINGS,
    ir.AttributeType.TENSOR,
}


def _node(node: ir.Node) -> Node:
    attributes: dict[str, object] = {}
    bodies: dict[str, Graph] = {}
    for name, attribute in node.attributes.items():
        if attribute.type is ir.AttributeType.GRAPH:
            bodies[name] = plain_graph(attribute.as_graph())
        elif attribute.type in _PLAIN:
            attributes[name] = attribute.value
        else:
            raise CheckpointError(
                f"attribute '{name}' of node '{node.name}' ({node.op_type}) is of kind"
                f" {attribute.type.name}, which is not supported."
            )
    domain = "" if node.domain == "ai.onnx" else node.domain
    return Node(
        name=node.name or "",
        domain=domain,
        op_type=node.op_type,
        inputs=tuple("" if value is None else value.name or "" for value in node.inputs),
        outputs=tuple(value.name or "" for value in node.outputs),
        attributes=attributes,
        bodies=bodies,
        scope=_scope(node),
        _source=node,
    )


def _scope(node: ir.Node) -> tuple[str, ...]:
    """Return where the node was exported from: `("layers", "0", "attn")`.

    torch.onnx writes it into the metadata of a node, the older exporter into its name:
    `/layers.0/attn/MatMul_1`.
    """
    written = node.metadata_props.get("namespace")
    if written is not None:
        # `: Model/layers.0: Layer/layers.0.attn: Attention/aten.matmul: matmul`; the last names the
        # operator, and the one before it has the whole path.
        modules = [part.partition(":")[0].strip() for part in written.split("/")[:-1]]
        last = modules[-1] if modules else ""
        # What torch's own passes add was in no module; they say so by a name of theirs.
        return tuple(part for part in last.split(".") if part and not part.startswith("_empty_nn"))
    parts = (node.name or "").strip("/").split("/")[:-1]
    return tuple(part for name in parts for part in name.split(".") if part)


# What travels between the nodes of a graph: tensors, and tensors whose elements are numbers.
#
# ONNX computes sizes with tensors: `Shape`, `Gather`, `Mul`, `Concat`, then `Reshape` with the
# result. While torch.export traces, a size is a Python number or a symbol, and has to stay one, or
# its dimension would be fixed. So what `Shape` makes, and what is computed from it, is `Known`.

# Or a symbol of torch, which its own type hints call a number, too; see `is_symbol`.
ExactNumber: TypeAlias = int | float | bool


@dataclass(frozen=True)
class Known:
    """A small tensor whose elements are known as Python numbers, or as symbols."""

    numbers: np.ndarray  # of numpy's dtype `object`, in the tensor's shape
    dtype: torch.dtype  # of the tensor
    stored: torch.Tensor | None = None  # the tensor itself, for a constant of the model

    @classmethod
    def of(cls, numbers: Sequence[ExactNumber], dtype: torch.dtype = torch.int64) -> Known:
        """Return a tensor of one axis."""
        return cls(objects(numbers), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def flat(self) -> list[ExactNumber]:
        """Return all numbers in order."""
        return cast(list[ExactNumber], list(self.numbers.flat))

    def tensor(self) -> torch.Tensor:
        """Return the tensor that it stands for."""
        if self.stored is not None:
            return self.stored
        numbers = self.flat()
        if not any(map(is_symbol, numbers)):
            return torch.tensor(numbers, dtype=self.dtype).reshape(self.shape)
        scalars = [torch.scalar_tensor(number, dtype=self.dtype) for number in numbers]
        return torch.stack(scalars).reshape(self.shape) if self.shape else scalars[0]


NodeValue: TypeAlias = torch.Tensor | Known

# Larger constants are tensors alone: no shape has so many axes, and no list of indices of a graph
# that was written out is longer where it matters.
MOST_NUMBERS = 64


def objects(numbers: Iterable[ExactNumber]) -> np.ndarray:
    """Return numbers, symbols among them, as an array of one axis that leaves them as they are."""
    listed = list(numbers)
    array = np.empty(len(listed), dtype=object)
    for index, number in enumerate(listed):
        array[index] = number
    return array


def is_symbol(number: object) -> bool:
    """Tell a size or a sum of sizes that is known only when the model runs."""
    return isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool))


def as_tensor(value: NodeValue) -> torch.Tensor:
    return value.tensor() if isinstance(value, Known) else value


_T = TypeVar("_T")

Result: TypeAlias = NodeValue | Sequence[NodeValue | None]
NodeFunction: TypeAlias = "Callable[[NodeCall], Result]"
# Returns None where tensors have to compute it.
NumberFunction: TypeAlias = "Callable[[NodeCall], Result | None]"


@dataclass(frozen=True)
class NodeCall:
    """One node that is about to be computed."""

    node: Node  # the node
    values: tuple[NodeValue | None, ...]  # of its inputs; None for one that is left out
    opset: int  # version of the operators of the node's domain

    def has(self, index: int) -> bool:
        """Tell whether an optional input is there."""
        return index < len(self.values) and self.values[index] is not None

    def value(self, index: int) -> NodeValue:
        """Return the value of an input.

        Raises:
            ExportError: It is left out, though the operator needs it.
        """
        found = self.values[index] if index < len(self.values) else None
        if found is None:
            raise self.refused(f"has no input {index}, which the operator needs")
        return found

    def tensor(self, index: int) -> torch.Tensor:
        return as_tensor(self.value(index))

    def optional(self, index: int) -> torch.Tensor | None:
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[torch.Tensor]:
        """Return all inputs that are there."""
        return [as_tensor(value) for value in self.values if value is not None]

    def numbers(self, index: int, what: str) -> list[ExactNumber]:
        """Return the elements of an input that has to be known before the model runs.

        Args:
            what: The input in the words of ONNX, for messages: `axes`.

        Raises:
            ExportError: It is computed from values of the model's inputs.
        """
        value = self.value(index)
        if isinstance(value, Known):
            return value.flat()
        raise self.refused(
            f"takes its {what} from values that are known only when the model runs; sizes and"
            " constants alone can be traced"
        )

    def sizes(self, index: int, what: str) -> list[int]:
        """Return the elements of an input of sizes or axes; as `numbers`."""
        return cast(list[int], self.numbers(index, what))

    def attribute(self, name: str, default: _T) -> _T:
        """Return an attribute of the default's type."""
        return cast(_T, self.node.attributes.get(name, default))

    def required(self, name: str, kind: type[_T]) -> _T:
        """Return an attribute that the operator needs.

        Raises:
            ExportError: It is left out.
        """
        if name not in self.node.attributes:
            raise self.refused(f"has no attribute '{name}', which the operator needs")
        return cast(_T, self.node.attributes[name])

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        return list(cast(Sequence[int], self.node.attributes.get(name, default)))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that an attribute names.

        Raises:
            ExportError: Torch lacks it, or nothing here supports it.
        """
        number = self.required(name, int)
        found = TORCH_DTYPES.get(ir.DataType(number))
        if found is None:
            raise self.refused(f"makes {ir.DataType(number).name}, which is not supported")
        return found

    def axes(self, index: int) -> list[int] | None:
        """Return `axes`, an input in newer operator sets and an attribute in older ones."""
        if self.has(index):
            return [int(cast(int, axis)) for axis in self.numbers(index, "axes")]
        given = self.ints("axes", ())
        return given or None

    def refused(self, why: str) -> ExportError:
        """Return the error for a form of an operator that cannot be read."""
        return ExportError(f"{self.node.place} {why}.")


TORCH_DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


# The table from operator to function, which each file of this folder fills.


# The domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"

_TENSORS: dict[tuple[str, str], NodeFunction] = {}
_NUMBERS: dict[tuple[str, str], NumberFunction] = {}

# By domain and name.
ONNX_OPERATORS = MappingProxyType(_TENSORS)

# What operators do where all their inputs are `Known`: sizes stay numbers.
ON_NUMBERS = MappingProxyType(_NUMBERS)


def operator(*names: str, domain: str = "") -> Callable[[NodeFunction], NodeFunction]:
    """Register a function for operators of a domain."""

    def register(function: NodeFunction) -> NodeFunction:
        for name in names:
            assert (domain, name) not in _TENSORS, f"{domain}.{name} is registered twice"
            _TENSORS[domain, name] = function
        return function

    return register


def on_numbers(*names: str) -> Callable[[NumberFunction], NumberFunction]:
    """Register what standard operators do with numbers."""

    def register(function: NumberFunction) -> NumberFunction:
        _NUMBERS.update({("", name): function for name in names})
        return function

    return register


def known_domain(domain: str) -> str:
    """Return the domain under which the table has a node's operator: bodies share one."""
    return KERNEL_DOMAIN if base_domain(domain) is not None else domain
