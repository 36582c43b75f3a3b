"""Decide how many bits the weights of each matrix product of a model get."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from moh_deploy.graph.int8_policy import (
    PRODUCTS,
    no_stored_matrix,
    plan_int8,
    products_before,
    products_of_scores,
)
from moh_deploy.ops import is_moh_op, op_names

PROJECTIONS = (op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)

# What may stand between the last product and what a model returns.
_BEHIND_THE_LAST = frozenset(
    {"Add", "Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
)


@dataclass(frozen=True)
class Int4Plan:
    """The products of a graph, by how their weights are stored.

    Attributes:
        bits: Name to 4 or 8.
        int8: Name of each that has 8 to the reason why.
        float32: Name of each of the others to the reason why.
    """

    bits: Mapping[str, int]
    int8: Mapping[str, str]
    float32: Mapping[str, str]


def plan_int4(
    model: ir.Model, *, gates: Collection[str], float32: Collection[str] = ()
) -> Int4Plan:
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
    plan = replace(plain, int8=(*plain.int8, *stored), float32={**plain.float32, **left}).without(
        float32
    )
    reasons = _more_than_4(model, gates)
    int8 = {name: reasons[name] for name in plan.int8 if name in reasons}
    return Int4Plan({name: 8 if name in int8 else 4 for name in plan.int8}, int8, plan.float32)


def _more_than_4(model: ir.Model, gates: Collection[str]) -> dict[str, str]:
    """Return the products whose weights need more than 4 bits, with the reason."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    reasons = {
        node.name or "": "its result is returned"
        for node in model.graph
        if node.op_type in PRODUCTS and _is_last(node)
    }
    for name in gates:
        if name in values:
            only = set(products_of_scores(values[name]))
            for node in products_before(values[name]):
                if node not in only:
                    reasons[node.name or ""] = "a router ranks what it makes, among others"
    return reasons


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
