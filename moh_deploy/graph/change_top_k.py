"""Let routers choose another number of heads, where that number is an attribute of theirs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
import onnx_ir as ir

from moh_deploy.errors import ConfigError
from moh_deploy.package import LayerInfo
from moh_deploy.package.graph_nodes import makers_of, router_nodes

_WHOLE = ("top_k", "two_stage", "query_norm", "mask")
"""Forms whose MoHRouter may make the gates alone. Where operators behind it weigh them, these may
know how many heads there are: a factor of 1 / k."""

_WEIGHING = ("Concat", "Div", "Mul")


def change_top_k(
    model: ir.Model, layers: Sequence[LayerInfo], top_k: int | None
) -> tuple[LayerInfo, ...]:
    """Write another `top_k` into the routers of a package's model.

    Layers in which nothing is chosen stay as they are: all heads are shared, or no input changes
    the gates.

    Args:
        model: Changed in place.
        layers: Those of its package.
        top_k: Routed heads that a token is to choose; None for all of them.

    Returns:
        The layers as the model has them now, without a share of open gates.

    Raises:
        ConfigError: A layer has a router of another form, or fewer routed heads; or none chooses.
    """
    nodes = {node.name: node for node in model.graph if node.name}
    graph = onnx.GraphProto(node=map(ir.serde.serialize_node, model.graph))
    makers = makers_of(graph.node)
    found = []
    for layer, name in zip(layers, router_nodes(graph, tuple(layers)), strict=True):
        node = None if name is None else nodes[name]
        if layer.top_k == 0 or layer.router in ("constant", "shared"):
            found.append(layer)
            continue
        number = _number(layer, node, top_k, is_weighed=_is_weighed(layer.gates, name, makers))
        assert node is not None
        node.attributes["top_k"] = ir.AttrInt64("top_k", number)
        found.append(replace(layer, top_k=number, active_share=None))
    if all(new is old for new, old in zip(found, layers, strict=True)):
        raise ConfigError("no layer of the package chooses heads: there is no top_k to change.")
    return tuple(found)


def _is_weighed(gates: str, router: str | None, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Tell whether operators weigh what a router made, or join it with weights of its own."""
    maker = makers.get(gates)
    while maker is not None and maker.name != router:
        if maker.op_type in _WEIGHING:
            return True
        maker = makers.get(maker.input[0]) if maker.input else None
    return False


def _number(layer: LayerInfo, node: ir.Node | None, top_k: int | None, *, is_weighed: bool) -> int:
    if node is None or layer.router not in _WHOLE or is_weighed:
        why = (
            "plain operators make its gates"
            if node is None
            else "operators behind the router weigh its gates, and may know how many there are"
        )
        raise ConfigError(
            f"layer '{layer.path}' has a router of the form '{layer.router}': {why}; expected one"
            f" of {', '.join(_WHOLE)}.",
            hint="Change top_k in the model's own code, and export that.",
        )
    routed = layer.num_heads - node.attributes["num_shared_heads"].as_int()
    number = routed if top_k is None else top_k
    if not 1 <= number <= routed:
        raise ConfigError(f"top_k is {number}, but layer '{layer.path}' has {routed} routed heads.")
    return number
