from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from moh_deploy.graph.export_names import name_nodes
from tests.graph.models import model, node, value


def chain(*ops: tuple[str, Sequence[str] | None]) -> ir.Model:
    """Operators one behind the other, each with the scopes that the exporter writes."""
    values = [value(f"v{i}", ["b", 8]) for i in range(len(ops) + 1)]
    nodes = [node(op, [values[i]], values[i + 1]) for i, (op, _) in enumerate(ops)]
    for i, (made, (_, scopes)) in enumerate(zip(nodes, ops, strict=True)):
        made.name = f"node_{i}"
        if scopes is not None:
            made.metadata_props["pkg.torch.onnx.name_scopes"] = repr([*scopes, made.name])
    return model([values[0]], [values[-1]], nodes)


def names(built: ir.Model, *keep: str) -> list[str | None]:
    name_nodes(built, keep=frozenset(keep))
    return [one.name for one in built.graph]


def test_nodes_are_named_after_their_innermost_module():
    built = chain(("Relu", ["", "mlp", "mlp.act"]), ("MoHTokenConv", ["", "mlp"]), ("Tanh", [""]))
    assert names(built) == ["mlp.act.Relu", "mlp.MoHTokenConv", "model.Tanh"]


def test_no_two_nodes_have_one_name():
    built = chain(*[("Relu", ["", "act"])] * 3, ("Tanh", ["", "act"]))
    assert names(built) == ["act.Relu", "act.Relu#2", "act.Relu#3", "act.Tanh"]


def test_names_of_layers_stay_and_are_not_given_again():
    built = chain(("MoHRouter", ["", "attn"]), ("MoHRouter", ["", "attn"]))
    built.graph.node(0).name = "attn.MoHRouter"
    assert names(built, "attn.MoHRouter") == ["attn.MoHRouter", "attn.MoHRouter#2"]


def test_node_without_scopes_keeps_its_name():
    assert names(chain(("Relu", None), ("Relu", []))) == ["node_0", "model.Relu"]
