"""Compute what depends on weights alone once, when the model is exported, instead of in every run.

A package holds each weight once: weights are folded only where what is made of them takes their
place and is no larger. Where a weight is also read as it is (by another layer, say), or would grow
(integers that are scaled to floating point), the operators stay, and a runtime folds them when it
loads the model. What a MoH operator reads (a bias that a small network makes of positions, say) may
grow: no kernel should wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend.fx.constant_inputs import add_constant
from moh_deploy.frontend.fx.constants import Constants, StoredNodes
from moh_deploy.frontend.fx.graph import ancestors, computed, is_tensor, let_read, op, tensor
from moh_deploy.frontend.fx.views import casts, is_view
from moh_deploy.frontend.normalize.merge_equal import merge_calls

_SMALL_BYTES = 1024
_OPERAND_BYTES = 1 << 23


@dataclass
class _Group:
    """Weights, and all that is read of what is made of them.

    Attributes:
        weights: Those that count; scalars are shared by unrelated weights.
        size: Bytes of all weights.
    """

    weights: set[Node]
    results: list[Node]
    size: int


def fold_weights(program: ExportedProgram) -> None:
    """Put constant tensors in the place of what is made of weights alone.

    Args:
        program: MoH operators are those of `moh_deploy.frontend.torch_ops`.
    """
    graph = program.graph_module.graph
    constant = Constants(program)
    # A layer that runs twice rearranges its weights once.
    merge_calls(graph, _stored(graph, constant).__contains__)
    graph.eliminate_dead_code()
    stored = _stored(graph, constant)
    results = [node for group in _groups(stored) if _pays(group, stored) for node in group.results]
    results += [node for node in _operands(stored) if node not in results]
    for node, value in list(_evaluate(results, constant)):
        let_read(node, add_constant(program, _name(node), value))
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _stored(graph: Graph, constant: Constants) -> set[Node]:
    """Return what follows from weights alone. A layer stays one: its attention is computed."""
    is_stored = StoredNodes(graph, constant)
    stored: set[Node] = set()
    for node in graph.nodes:
        if is_stored(node) and not _is_attention(node) and stored.issuperset(node.all_input_nodes):
            stored.add(node)
    return stored


def _is_attention(node: Node) -> bool:
    return _is_moh(node) and op(node).endswith("attention")


def _is_moh(node: Node) -> bool:
    return getattr(node.target, "namespace", None) == "moh"


def _groups(stored: set[Node]) -> list[_Group]:
    """Group values by the weights they are made of: a group is folded together or not at all."""
    groups: list[_Group] = []
    for node in sorted(_read_by_others(stored)):
        weights = {source for source in ancestors(node) if source.op == "placeholder"}
        large = {weight for weight in weights if _bytes(weight) > _SMALL_BYTES}
        joined = _Group(large, [node], sum(map(_bytes, weights)))
        for group in [group for group in groups if group.weights & joined.weights]:
            groups.remove(group)
            weights = group.weights | joined.weights
            small = sum(g.size - sum(map(_bytes, g.weights)) for g in (group, joined))
            joined = _Group(
                weights, [*group.results, *joined.results], small + sum(map(_bytes, weights))
            )
        groups.append(joined)
    return groups


def _read_by_others(stored: set[Node]) -> Iterator[Node]:
    for node in stored:
        outside = any(user not in stored for user in node.users)
        # An output stays what it is; its other readers go on reading the same.
        if any(user.op == "output" for user in node.users):
            continue
        if outside and node.op == "call_function" and is_tensor(node):
            yield node


def _operands(stored: set[Node]) -> Iterator[Node]:
    """The inputs of MoH operators that are computed from weights, and not only cut or turned."""
    for node in sorted(_read_by_others(stored)):
        cone = [source for source in ancestors(node) if source.op == "call_function"]
        changed = any(not is_view(source) or casts(source) for source in cone)
        if changed and _bytes(node) <= _OPERAND_BYTES and any(map(_is_moh, node.users)):
            yield node


def _pays(group: _Group, stored: set[Node]) -> bool:
    """True where the results take the place of the weights."""
    spent = all(user in stored for weight in group.weights for user in weight.users)
    size = sum(map(_bytes, group.results))
    return spent and size <= max(_SMALL_BYTES, group.size)


def _bytes(node: Node) -> int:
    value = tensor(node)
    return int(value.numel()) * value.element_size()


def _evaluate(results: Iterable[Node], constant: Constants) -> Iterator[tuple[Node, torch.Tensor]]:
    """The values of nodes; slices and transposes stay views of the weights."""
    known: dict[Node, object] = {}
    wanted = list(results)
    with torch.no_grad():
        for node in sorted(ancestors(*wanted)):
            stored = node.op == "placeholder"
            known[node] = constant(node) if stored else computed(node, known.__getitem__)
    for node in wanted:
        yield node, cast(torch.Tensor, known[node]).detach()


def _name(node: Node) -> str:
    """A name after the weight that it is made of: `attn_qkv_weight_part`."""
    weights = [source for source in ancestors(node) if source.op == "placeholder"]
    return f"{max(weights, key=_bytes).name.removeprefix('p_')}_part"
