"""Decide which matrix products of a model are to be in int8."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.ops import is_moh_op, op_names
from moh_deploy.package.graph_nodes import CONTRACTIONS
from moh_deploy.system.suggest import did_you_mean

PRODUCTS = ("Gemm", "MatMul")
"""Operators that may be in int8: what ONNX Runtime's dynamic quantiser has for two axes of
weights."""
_VIEWS = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class BitsPlan:
    """The products of a graph, by what becomes of them."""

    few: tuple[str, ...]  # names of those whose weights get few bits
    float32: Mapping[str, str]  # name of each of the others to the reason why
    # Name of each that gets 8 bits though it was to have fewer to the reason why.
    int8: Mapping[str, str] = field(default_factory=dict)

    def without(self, names: Collection[str]) -> BitsPlan:
        """Return the plan with some more products in float32.

        Raises:
            ConfigError: There is no product of a name.
        """
        for name in names:
            if name not in {*self.few, *self.float32}:
                raise ConfigError(
                    f"there is no product '{name}' in the model.",
                    hint=did_you_mean(name, self.few) or f"There are {', '.join(self.few[:8])}.",
                )
        asked = {name: "asked for" for name in names if name in self.few}
        few = tuple(name for name in self.few if name not in asked)
        return BitsPlan(few, {**self.float32, **asked})


def plan_int8(model: ir.Model, *, gates: Collection[str]) -> BitsPlan:
    """Decide of each product of the main graph.

    Weights that are stored are rounded once, each column by its own scale; activations when they
    are met. A product stays in float32 if its weights are computed, or if it makes nothing but
    scores of a router: it is small, and rounding it chooses other heads. Where the scores are made
    of the queries themselves, their product is one of the large ones, and is in int8.

    Args:
        model: All floats are float32; its projections are products. Products without a name get
            one.
        gates: Names of the layers' gates.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    scores = {node for name in gates if name in values for node in products_of_scores(values[name])}
    int8: list[str] = []
    float32: dict[str, str] = {}
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in PRODUCTS:
            continue
        # The quantiser is told by names which products to take.
        node.name = node.name or f"{node.outputs[0].name}.{node.op_type}"
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        scales = {attributes.get(k, 1.0) for k in ("alpha", "beta")} != {1.0}
        reason = no_stored_matrix(node)
        if attributes.get("transA", 0) or scales:
            reason = "it scales or transposes what it reads"
        if node in scores:
            reason = "a router ranks what it makes"
        if reason is None:
            int8.append(node.name)
        else:
            float32[node.name] = reason
    return BitsPlan(tuple(int8), float32)


def no_stored_matrix(node: ir.Node) -> str | None:
    """Return why a product has no stored matrix of weights; None if it has one."""
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or weight.producer() is not None:
        return "its weights are computed, not stored"
    if len(weight.const_value.shape) != 2:  # [in, out]
        return "its weights are no matrix"
    return None


def products_of_scores(gates: ir.Value) -> Iterator[ir.Node]:
    """Yield the products that make the scores behind some gates and nothing else."""
    way = set(_way(gates))
    # Where the way ends: what a router computes, and its views up to the gates.
    ends = {value for node in way if node.op_type == op_names.ROUTER for value in node.outputs}
    value: ir.Value | None = gates
    while value is not None:
        ends.add(value)
        maker = value.producer()
        value = maker.inputs[0] if maker is not None and maker.op_type in _VIEWS else None
    for node in way:
        if node.op_type in CONTRACTIONS and _stays_on(node, way, ends):
            yield node


def products_before(gates: ir.Value) -> Iterator[ir.Node]:
    """Yield the products that make the scores behind some gates, whatever else they make."""
    return (node for node in _way(gates) if node.op_type in CONTRACTIONS)


def _way(gates: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes between the nearest contractions and some gates, these included.

    What a contraction reads, or a custom operator but the router, is made of whole tokens and is
    not looked at.
    """
    found: set[ir.Node] = set()
    waiting = deque([gates.producer()])
    while waiting:
        node = waiting.popleft()
        if node is None or node in found:
            continue
        found.add(node)
        if is_moh_op(node.domain, node.op_type) and node.op_type != op_names.ROUTER:
            continue
        yield node
        if node.op_type not in CONTRACTIONS:
            waiting += [value.producer() for value in node.inputs if value is not None]


def _stays_on(node: ir.Node, way: Collection[ir.Node], ends: Collection[ir.Value]) -> bool:
    """Tell whether all that is made of a node is on the way to gates, where the way ends."""
    waiting, found = [node], {node}
    while waiting:
        for value in waiting.pop().outputs:
            if value in ends:  # what gates do is what the router is for
                continue
            if value.is_graph_output() or any(user not in way for user in value.consumers()):
                return False
            new = [user for user in value.consumers() if user not in found]
            found.update(new)
            waiting += new
    return True


# Decide how many bits the weights of each matrix product of a model get.

PROJECTIONS = (op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)

# What may stand between the last product and what a model returns.
_BEHIND_THE_LAST = frozenset(
    {"Add", "Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
)


def plan_int4(
    model: ir.Model, *, gates: Collection[str], float32: Collection[str] = ()
) -> BitsPlan:
    """Decide of each product of the main graph, projections of layers included.

    Stored weights get 4 bits. They get 8 where the product makes, besides other things, the scores
    that a router ranks (a router of query norms), or nothing but what the model returns, such as
    logits: an error there is made good by nothing behind. They stay in float32 where `plan_int8`
    has them so, which is where a product makes a router's scores and nothing else.

    Args:
        model: All floats are float32. Products without a name get one.
        gates: Names of the layers' gates.
        float32: Names of products that are to stay.

    Raises:
        ConfigError: There is no product of a name.
    """
    plain = plan_int8(model, gates=gates)
    projections = {
        node.name or "": no_stored_matrix(node)
        for node in model.graph
        if is_moh_op(node.domain, node.op_type) and node.op_type in PROJECTIONS
    }
    stored = tuple(name for name, reason in projections.items() if reason is None)
    left = {name: reason for name, reason in projections.items() if reason is not None}
    plan = BitsPlan((*plain.few, *stored), {**plain.float32, **left}).without(float32)
    values = {value.name: value for node in model.graph for value in node.outputs}
    # The products whose weights need more than 4 bits.
    reasons = {
        node.name or "": "its result is returned"
        for node in model.graph
        if node.op_type in PRODUCTS and _is_last(node)
    }
    for gate_value in (values[name] for name in gates if name in values):
        for node in {*products_before(gate_value)} - {*products_of_scores(gate_value)}:
            reasons[node.name or ""] = "a router ranks what it makes, among others"
    return replace(plan, int8={name: reasons[name] for name in plan.few if name in reasons})


def _is_last(node: ir.Node) -> bool:
    """Tell whether all that is made of a node is returned, as logits are."""
    waiting, returned = [node], False
    while waiting:
        for value in waiting.pop().outputs:
            returned = returned or value.is_graph_output()
            for user in value.consumers():
                if user.op_type not in _BEHIND_THE_LAST:
                    return False
                waiting.append(user)
    return returned
