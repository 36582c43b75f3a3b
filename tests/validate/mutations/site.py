"""Where a fault is planted: one MoH layer of a model, and the nodes and weights around it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from moh_deploy.ops.op_names import base_domain, with_base
from moh_deploy.package import LayerInfo, VectorSet
from moh_deploy.package.graph_nodes import router_nodes
from moh_deploy.system.npz import Array
from tests.validate.mutations.wide import WideRun

Role = Literal["q", "k", "v", "o", "router"]

_PRODUCTS = {"MatMul": 1, "Gemm": 1, "MoHQueryProjection": 1, "MoHOutputProjection": 1}
"""Operator to the place of its weight."""


class DoesNotApplyError(Exception):
    """A layer has nothing that this fault could change; says what it lacks."""


class Linear(NamedTuple):
    """A product with a constant weight, [rows, columns] as `x @ weight` reads it, and its bias."""

    node: onnx.NodeProto
    weight: Array
    transposed: bool
    bias: Array | None
    bias_at: tuple[onnx.NodeProto, int] | None


@dataclass
class Site:
    """One layer of a model that is changed in place.

    Attributes:
        model: In float32.
        layers: All of the manifest's.
        index: Which of them gets the fault.
        vectors: The recorded runs.
    """

    model: onnx.ModelProto
    layers: tuple[LayerInfo, ...]
    index: int
    vectors: Sequence[VectorSet]

    def __post_init__(self) -> None:
        self._count = 0

    @property
    def layer(self) -> LayerInfo:
        return self.layers[self.index]

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    # What is there.

    def attention(self) -> onnx.NodeProto:
        """Return the layer's attention node."""
        return self._named(self.layer.node, "attention was not replaced")

    def router(self) -> onnx.NodeProto:
        """Return the layer's MoHRouter node."""
        names = router_nodes(self.graph, self.layers)
        return self._named(names[self.index], "router is of plain operators")

    def routed_logits(self) -> str:
        """Return what the layer's MoHRouter ranks."""
        router = self.router()
        if not router.input[0]:
            raise DoesNotApplyError("router chooses no heads")
        return router.input[0]

    def num_routed(self) -> int:
        """Return how many heads the layer's MoHRouter ranks."""
        self.routed_logits()
        heads = self.vectors[0].gates[self.index].shape[-1]
        return heads - self.attribute(self.router(), "num_shared_heads", 0)

    def maker(self, value: str) -> onnx.NodeProto | None:
        return next((node for node in self.graph.node if value in node.output), None)

    def readers(self, value: str) -> list[tuple[onnx.NodeProto, int]]:
        """Return all that reads a value, and at which place."""
        return [
            (node, place)
            for node in self.graph.node
            for place, name in enumerate(node.input)
            if name == value
        ]

    def constant(self, value: str) -> Array | None:
        """Return the weight of this name; None if it is computed."""
        for item in self.graph.initializer:
            if item.name == value:
                return numpy_helper.to_array(item)
        return None

    @staticmethod
    def attribute(node: onnx.NodeProto, name: str, otherwise: int = 0) -> int:
        found = next((item for item in node.attribute if item.name == name), None)
        return otherwise if found is None else helper.get_attribute_value(found)

    def place_of(self, node: onnx.NodeProto) -> int:
        """Return where in the graph a node stands."""
        output = node.output[0]
        return next(i for i, item in enumerate(self.graph.node) if output in item.output)

    def linear(self, role: Role) -> Linear:
        """Find the projection of the layer's queries, keys, values, heads or router.

        It is the nearest product with a constant weight: before attention, behind it for "o",
        before what is read for "router".
        """
        if role == "o":
            node = self._first_behind(self.attention().output[0])
        elif role == "router":
            node = self._first_before(self._router_reads())
        else:
            node = self._first_before(self.attention().input["qkv".index(role)])
        if node is None:
            raise DoesNotApplyError(f"{role}: no product with a constant weight")
        if role == "router":
            read = self.attention().input[:3] if self.layer.node is not None else ()
            others = [self._first_before(name) for name in read]
            if any(node.output[0] == other.output[0] for other in others if other is not None):
                raise DoesNotApplyError("the router has no weights of its own")
        return self._linear(node)

    def _router_reads(self) -> str:
        """Return what the layer's router reads, its routed logits first; of a router of plain
        operators, the gates that it makes."""
        try:
            return next(name for name in self.router().input if name)
        except DoesNotApplyError:
            return self.layer.gates

    def evaluate(self, value: str) -> Array:
        """Return what a value is on the first recorded inputs, in float64."""
        constant = self.constant(value)
        if constant is not None:
            return constant
        return WideRun(self.model, [value]).run(self.vectors[0].inputs)[value]

    def upstream(self, value: str, through: Collection[str]) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that a value is made by, the nearest first, and those that they read, as
        long as they are of these operators; the first of others is yielded, too."""
        front, seen = [value], {value}
        while front:
            node = self.maker(front.pop(0))
            if node is None:
                continue
            yield node
            if node.op_type in through:
                fresh = [name for name in node.input if name and name not in seen]
                seen |= set(fresh)
                front += fresh

    # How it is changed.

    def name(self, what: str) -> str:
        """Return a name that no value of the model has."""
        self._count += 1
        return f"planted.{self.index}.{what}.{self._count}"

    def put_constant(self, array: Array, what: str = "constant") -> str:
        """Add a weight, and return its name."""
        name = self.name(what)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def replace_constant(self, node: onnx.NodeProto, place: int, array: Array) -> None:
        """Let one node read another weight; other readers of the old one keep it."""
        node.input[place] = self.put_constant(array, "weight")

    def set_weight(self, linear: Linear, weight: Array) -> None:
        place = _PRODUCTS[linear.node.op_type]
        stored = weight.T if linear.transposed else weight
        self.replace_constant(linear.node, place, stored.astype(np.float32))

    def set_bias(self, linear: Linear, bias: Array) -> None:
        assert linear.bias_at is not None
        self.replace_constant(*linear.bias_at, bias.astype(np.float32))

    def add(
        self, op_type: str, inputs: Sequence[str], before: onnx.NodeProto, **attributes: object
    ) -> str:
        """Put a node in front of another one, and return the name of what it makes."""
        made = self.name(op_type)
        node = helper.make_node(op_type, inputs, [made], name=f"{made}.node", **attributes)
        self.graph.node.insert(self.place_of(before), node)
        return made

    def behind(self, value: str) -> tuple[str, onnx.NodeProto]:
        """Make room behind a value: what made it makes another one now, which is returned, with an
        Identity that hands it on under the old name. Put nodes in front of that, and let it read
        them."""
        maker = self.maker(value)
        raw = self.name("raw")
        maker.output[list(maker.output).index(value)] = raw
        hand_on = helper.make_node("Identity", [raw], [value], name=self.name("hand_on"))
        place = self.place_of(maker) + 1
        self.graph.node.insert(place, hand_on)
        return raw, self.graph.node[place]

    def instead(self, node: onnx.NodeProto, value: str) -> None:
        """Let what an Identity of `behind` hands on be another value."""
        node.input[0] = value

    def own_body(self, node: onnx.NodeProto) -> onnx.FunctionProto:
        """Give a node a body that no other node has, in a domain of its own, and return it."""
        base = base_domain(node.domain)
        assert base is not None
        old = next(
            f for f in self.model.functions if (f.domain, f.name) == (node.domain, node.op_type)
        )
        used = {domain.domain for domain in self.model.opset_import}
        number = next(n for n in range(2, 99) if not used & {f"moh.{n}", f"moh.dense.{n}"})
        domain = with_base(f"moh.{number}", base)
        alone = sum(
            (item.domain, item.op_type) == (node.domain, node.op_type) for item in self.graph.node
        )
        if alone == 1:  # no other node reads the body, so it may be changed where it is
            return old
        self.model.functions.append(onnx.FunctionProto.FromString(old.SerializeToString()))
        body = self.model.functions[-1]
        node.domain = body.domain = domain
        version = next(d.version for d in self.model.opset_import if base_domain(d.domain) == base)
        self.model.opset_import.append(helper.make_opsetid(domain, version))
        return body

    def _named(self, name: str | None, lacks: str) -> onnx.NodeProto:
        found = next((node for node in self.graph.node if node.name and node.name == name), None)
        if found is None:
            raise DoesNotApplyError(lacks)
        return found

    def _first_before(self, value: str) -> onnx.NodeProto | None:
        """Return the nearest product with a constant weight that a value is made from."""
        front, seen = [value], {value}
        while front:
            node = self.maker(front.pop(0))
            if node is None or (base_domain(node.domain) and node.op_type not in _PRODUCTS):
                continue
            if self._is_product(node):
                return node
            fresh = [name for name in node.input if name and name not in seen]
            seen |= set(fresh)
            front += fresh
        return None

    def _first_behind(self, value: str) -> onnx.NodeProto | None:
        front, seen = [value], {value}
        while front:
            for node, _ in self.readers(front.pop(0)):
                if self._is_product(node):
                    return node
                fresh = [name for name in node.output if name not in seen]
                seen |= set(fresh)
                front += fresh
        return None

    def _is_product(self, node: onnx.NodeProto) -> bool:
        place = _PRODUCTS.get(node.op_type)
        if place is None:
            return False
        weight = self.constant(node.input[place])
        return weight is not None and weight.ndim == 2

    def _linear(self, node: onnx.NodeProto) -> Linear:
        weight = self.constant(node.input[1])
        transposed = node.op_type == "Gemm" and bool(self.attribute(node, "transB"))
        at = self._bias_of(node)
        bias = None if at is None else self.constant(at[0].input[at[1]])
        return Linear(node, weight.T if transposed else weight, transposed, bias, at)

    def _bias_of(self, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
        own = {"Gemm": 2, "MoHQueryProjection": 3, "MoHOutputProjection": 3}.get(node.op_type)
        if own is not None:
            return (node, own) if len(node.input) > own and node.input[own] else None
        readers = self.readers(node.output[0])
        if len(readers) != 1 or readers[0][0].op_type != "Add":
            return None
        add, place = readers[0]
        other = self.constant(add.input[1 - place])
        return (add, 1 - place) if other is not None and other.ndim == 1 else None
