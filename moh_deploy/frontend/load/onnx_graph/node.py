"""One node of an ONNX graph, without protobuf."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from moh_deploy.errors import CheckpointError


@dataclass(frozen=True)
class Node:
    """An operator with the names of what it reads and writes."""

    name: str
    domain: str  # empty for the standard operators
    op_type: str
    inputs: tuple[str, ...]  # names; empty for an optional input that is left out
    outputs: tuple[str, ...]  # names; empty for an output that nobody reads
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
