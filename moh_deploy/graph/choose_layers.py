"""Run each layer as it was chosen: move its nodes between the domains `moh` and `moh.dense`.

To move a package to the one choice that its layers have at some sizes, without any `If`, as a
runtime for these sizes only may want it: `choose_layers(model, at_sizes(layers, sizes))`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from moh_deploy import package
from moh_deploy.errors import PackageError
from moh_deploy.graph.load_model import import_domains, load_ir
from moh_deploy.graph.switch_by_size import switch_rules_of, with_switches, without_switches
from moh_deploy.ops import OPS, is_moh_op
from moh_deploy.ops.op_names import DENSE_DOMAIN, KERNEL_DOMAIN, base_domain, with_base
from moh_deploy.package.onnx_file import save_with_weights


def choose_layers(model: ir.Model, layers: Sequence[package.LayerInfo]) -> bool:
    """Move nodes, and bring along the bodies that they need there.

    A node keeps its number: one operator's bodies are told apart in both domains alike.

    Args:
        model: Its functions hold a body for every node, in the node's domain.
        layers: Their choices say where each node belongs. Nodes of layers that are not among them
            stay where they are; domains that depend on sizes become `moh`.

    Raises:
        PackageError: The model lacks the node of a layer.
    """
    rules, places = (
        package.node_rules(layers),
        {node.name: base_domain(node.domain) or "" for node in _custom_nodes(model)}
        | switch_rules_of(model),
    )
    # Before anything is changed: the caller's model stays whole where the manifest is wrong.
    for name in rules:
        if name not in places:
            raise PackageError(f"model.onnx has no MoH node '{name}', which the manifest names.")
    # Rules are compared as text, which is how a model names its conditions.
    if all(places[name] == str(rule) for name, rule in rules.items()):
        return False
    # Out of their branches first: what is moved stands in the main graph.
    without_switches(model)
    for node in _custom_nodes(model):
        rule = rules.get(node.name or "")
        if rule is not None:  # one of several domains is in `moh` for now
            node.domain = with_base(node.domain, rule.domain or KERNEL_DOMAIN)
    # Behind the move: a switch copies the node with the domain that it has.
    with_switches(model, rules)
    _arrange_bodies(model)
    import_domains(model)
    return True


def ops_of(model: ir.Model) -> dict[str, int]:
    """Return `moh::MoHAttention` and the like, of all domains, with their versions: for the
    manifest."""
    used = sorted({identifier[:2] for identifier in model.functions})
    return {
        f"{domain}::{name}": spec.version
        for spec in OPS.values()
        for domain, name in used
        if name == spec.name and base_domain(domain)
    }


def _custom_nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if is_moh_op(node.domain, node.op_type)]


def _arrange_bodies(model: ir.Model) -> None:
    """Keep one body for each domain that has nodes, in an order that does not tell of any moves."""
    # A body is the same in both domains: it is copied to where its nodes have moved.
    used = {node.op_identifier() for node in _custom_nodes(model)}
    before = dict(model.functions)
    model.functions.clear()
    for (domain, name, overload), function in before.items():
        if not is_moh_op(domain, name):
            model.functions[function.identifier()] = function
            continue
        # A body for each domain in use, its copy if the node was not there before: `moh.dense` has
        # the same bodies, and no kernel.
        for target in (with_base(domain, base) for base in (KERNEL_DOMAIN, DENSE_DOMAIN)):
            identifier = (target, name, overload)
            if identifier in used and identifier not in model.functions:
                model.functions[identifier] = before.get(identifier) or _copied(function, target)


def _copied(function: ir.Function, domain: str) -> ir.Function:
    copy = ir.serde.deserialize_function(ir.serde.serialize_function(function))
    copy.domain = domain
    return copy


# Write a package again with other choices for its layers; everything else stays as it is.


def write_choices(
    original: package.OnnxPackage,
    layers: Sequence[package.LayerInfo],
    output: Path,
    *,
    tuning: package.Tuning | None = None,
    runtime: package.Runtime | None = None,
) -> package.OnnxPackage:
    """Write the package with these layers in place of its own.

    Args:
        package: Where everything else comes from.
        layers: The package's layers, with other choices.
        output: The directory to write; the package's own, to replace it in one step.
        tuning: What the choices rest on.
        runtime: What is to run the package where nothing else is asked for; None for what it says.

    Raises:
        PackageError: It cannot be written, the disk is full, or the model lacks a layer's node.
            What was there is still there.
    """
    model = load_ir(original)
    choose_layers(model, layers)
    with package.PackageWriter(output) as writer:
        if package.MODEL_DATA_NAME in original.manifest.files:
            # Choices change no weight, so a gigabyte of them is linked and not written again.
            writer.bring_along(original, package.MODEL_DATA_NAME)
            ir.save(model, writer.path(package.MODEL_NAME))
        else:
            save_with_weights(model, writer.path(package.MODEL_NAME))
        writer.bring_tokenizer(original)
        # `ops` lists domains, which the choices have changed.
        manifest = replace(
            original.manifest, layers=tuple(layers), ops=ops_of(model), tuning=tuning
        )
        manifest = replace(manifest, runtime=runtime or manifest.runtime)
        return writer.finish(manifest, original.vectors, original.corpus)
