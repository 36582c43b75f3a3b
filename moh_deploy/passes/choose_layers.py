"""Run each layer as it was chosen: move its nodes between the domains `moh` and `moh.dense`.

To move a package to the one choice that its layers have at some sizes, without any `If`, as a
runtime for these sizes only may want it: `choose_layers(model, at_sizes(layers, sizes))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moh_deploy.errors import PackageError
from moh_deploy.ops import OPS
from moh_deploy.package import DENSE_DOMAIN, LayerInfo, NodeRule, node_rules
from moh_deploy.passes.switch_by_size import switch_rules, with_switches, without_switches


def choose_layers(model: ir.Model, layers: Sequence[LayerInfo]) -> bool:
    """Move nodes, and bring along the bodies that they need there.

    A node keeps its overload: one operator's bodies are told apart in both domains alike.

    Args:
        model: Its functions hold a body for every node, in the node's domain.
        layers: Their choices say where each node belongs. Nodes of layers that are not among them
            stay where they are, but for those that depend on sizes: these go to `moh`.

    Returns:
        Whether anything was changed.

    Raises:
        PackageError: The model lacks the node of a layer.
    """
    rules, places = node_rules(layers), _places(model)
    for name in rules:
        if name not in places:
            raise PackageError(f"model.onnx has no MoH node '{name}', which the manifest names.")
    if all(places[name] == str(rule) for name, rule in rules.items()):
        return False
    without_switches(model)
    _move(model, rules)
    with_switches(model, rules)
    _arrange_bodies(model)
    _import_domains(model)
    return True


def ops_of(model: ir.Model) -> dict[str, int]:
    """Return `moh::MoHAttention` and the like, of both domains, with their versions: for the
    manifest."""
    used = {identifier[:2] for identifier in model.functions}
    return {
        f"{domain}::{spec.name}": spec.version
        for spec in OPS.values()
        for domain in (spec.domain, DENSE_DOMAIN)
        if (domain, spec.name) in used
    }


def _places(model: ir.Model) -> dict[str | None, str]:
    """Return where each node is, as the text of a rule."""
    return {node.name: node.domain for node in _custom_nodes(model)} | switch_rules(model)


def _move(model: ir.Model, rules: Mapping[str, NodeRule]) -> None:
    """Give each node its domain; `moh` for now if it has several."""
    for node in _custom_nodes(model):
        rule = rules.get(node.name or "")
        if rule is not None:
            node.domain = rule.domain or OPS[node.op_type].domain


def _custom_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if _is_custom(node.domain, node.op_type)]


def _is_custom(domain: str, name: str) -> bool:
    return name in OPS and domain in (OPS[name].domain, DENSE_DOMAIN)


def _arrange_bodies(model: ir.Model) -> None:
    """Keep one body for each domain that has nodes, in an order that does not tell of any moves."""
    used = {node.op_identifier() for node in _custom_nodes(model)}
    before = dict(model.functions)
    model.functions.clear()
    for (domain, name, overload), function in before.items():
        if not _is_custom(domain, name):
            model.functions[function.identifier()] = function
            continue
        for target in (OPS[name].domain, DENSE_DOMAIN):
            identifier = (target, name, overload)
            if identifier in used and identifier not in model.functions:
                model.functions[identifier] = before.get(identifier) or _copied(function, target)


def _copied(function: ir.Function, domain: str) -> ir.Function:
    copy = ir.serde.deserialize_function(ir.serde.serialize_function(function))
    copy.domain = domain
    return copy


def _import_domains(model: ir.Model) -> None:
    model.opset_imports.pop(DENSE_DOMAIN, None)
    if any(domain == DENSE_DOMAIN for domain, _, _ in model.functions):
        model.opset_imports[DENSE_DOMAIN] = max(spec.version for spec in OPS.values())
