"""Compute what no input changes once, when the model is exported, instead of in every run.

A package holds each weight once: weights are folded only where what is made of them takes their
place and is no larger. Where a weight is also read as it is (by another layer, say), or would grow
(integers that are scaled to floating point), the operators stay, and a runtime folds them when it
loads the model. What a MoH operator reads (a bias that a small network makes of positions, say) may
grow: no kernel should wait for it.

The results of powers, sines and long sums differ between libraries in the last place, and position
2,000 makes an angle of 2,000 times that. Such values are folded with PyTorch's arithmetic, which is
the original's, before torch.onnx or a runtime folds them with its own.
"""

import math
from collections.abc import Callable, Hashable, Iterator

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend.fx.graph import (
    add_constant,
    ancestors,
    argument,
    is_tensor,
    let_read,
    op,
    tensor,
)
from moh_deploy.frontend.fx.known_values import Constants, KnownValues, StoredNodes, is_random
from moh_deploy.frontend.fx.views import casts, is_view

_SMALL_BYTES = 1024
_OPERAND_BYTES = 1 << 23
# Operators that round as IEEE 754 says, or not at all: each library computes the same.
_EXACT = frozenset(
    """
    add sub rsub mul div neg abs floor ceil round sign
    eq ne lt le gt ge where masked_fill clamp minimum maximum
    full ones zeros full_like ones_like zeros_like scalar_tensor eye
    slice select index index_select gather embedding flip roll pad
    cat stack split split_with_sizes chunk unbind getitem expand
    repeat repeat_interleave tril triu constant_pad_nd
    """.split()  # noqa: SIM905
)


def fold_constants(program: ExportedProgram, *, by_torch: bool = True) -> None:
    """Put constant tensors in the place of what no input changes.

    Args:
        program: MoH operators are those of `moh_deploy.frontend.torch_ops`.
        by_torch: Fold what libraries round differently, too. ONNX Runtime runs an original that is
            an ONNX file, and folds that when it loads the package.
    """
    graph = program.graph_module.graph
    constant = Constants(program)
    # A layer that runs twice rearranges its weights once.
    merge_calls(graph, _before_attention(graph, StoredNodes(graph, constant)).__contains__)
    graph.eliminate_dead_code()
    known = KnownValues(program)
    stored = _before_attention(graph, StoredNodes(graph, constant))
    results: list[Node] = []
    for weights, made, size in _groups(stored):
        # It pays where the results take the place of the weights.
        spent = all(user in stored for weight in weights for user in weight.users)
        if spent and sum(map(_bytes, made)) <= max(_SMALL_BYTES, size):
            results += made
    for node in _read_by_others(stored):
        # Inputs of MoH operators that are computed of weights, and not only cut or turned.
        cone = [source for source in ancestors(node) if source.op == "call_function"]
        changed = any(not is_view(source) or casts(source) for source in cone)
        if changed and _bytes(node) <= _OPERAND_BYTES and any(map(_is_moh, node.users)):
            results.append(node)
    if by_torch:
        results += _rounded(_before_attention(graph, known.__contains__))
    folded = [(node, known(node)) for node in dict.fromkeys(results)]
    for node, value in folded:
        assert value is not None
        # A name after the weight that it is made of: `attn_qkv_weight_part`.
        placeholders = [source for source in ancestors(node) if source.op == "placeholder"]
        largest = max(placeholders, key=_bytes, default=node)
        name = f"{largest.name.removeprefix('p_')}_part"
        let_read(node, add_constant(program, name, value.detach()))
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _before_attention(graph: Graph, is_known: Callable[[Node], bool]) -> set[Node]:
    """Return the known nodes before any attention. A layer stays one: attention is computed."""
    found: set[Node] = set()
    for node in graph.nodes:
        attends = _is_moh(node) and op(node).endswith("attention")
        if is_known(node) and not attends and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _is_moh(node: Node) -> bool:
    return getattr(node.target, "namespace", None) == "moh"


def _groups(stored: set[Node]) -> list[tuple[set[Node], list[Node], int]]:
    """Group values by the weights they are made of: a group is folded together or not at all.

    Returns:
        Of each group its weights except scalars, which unrelated weights share; what is read of
        it; and the bytes of all its weights.
    """
    groups: list[tuple[set[Node], list[Node], int]] = []
    for node in _read_by_others(stored):
        weights = {source for source in ancestors(node) if source.op == "placeholder"}
        large = {weight for weight in weights if _bytes(weight) > _SMALL_BYTES}
        small, results = sum(map(_bytes, weights - large)), [node]
        for group in [group for group in groups if group[0] & large]:
            groups.remove(group)
            small += group[2] - sum(map(_bytes, group[0]))
            large, results = group[0] | large, [*group[1], *results]
        groups.append((large, results, small + sum(map(_bytes, large))))
    return groups


def _read_by_others(stored: set[Node]) -> list[Node]:
    """Return the tensors, in order, that other nodes read."""
    # An output stays what it is; its other readers go on reading the same.
    return [
        node
        for node in sorted(stored)
        if node.op == "call_function"
        and is_tensor(node)
        and not stored.issuperset(node.users)
        and all(user.op != "output" for user in node.users)
    ]


def _rounded(fixed: set[Node]) -> Iterator[Node]:
    """Yield what libraries round each in its own way, where it is small, and behind that whatever
    does not grow: a table of cosines, and of what repeats one for each head the table."""
    sizes: dict[Node, float] = {}  # of the rounded results that a value is made of
    for node in sorted(fixed):
        sources = [source for source in node.all_input_nodes if source in sizes]
        values = [tensor(source) for source in (node, *node.all_input_nodes) if is_tensor(source)]
        has_floats = any(value.is_floating_point() for value in values)
        if op(node) and has_floats and op(node) not in _EXACT and not is_view(node):
            sizes[node] = _bytes(node) if is_tensor(node) else math.inf
        elif sources:
            sizes[node] = sum(sizes[source] for source in sources)
    wanted = set(_read_by_others(fixed))
    for node in sorted(sizes, reverse=True):
        if node not in wanted:
            continue
        if is_tensor(node) and _bytes(node) <= min(sizes[node], _OPERAND_BYTES):
            yield node
        else:
            wanted.update(node.all_input_nodes)


def _bytes(node: Node) -> int:
    value = tensor(node)
    return int(value.numel()) * value.element_size()


# Compute once what a program computes twice, such as a layer that is run twice on the same tokens.
#
# torch.onnx merges it in any case, and would leave one attention of two layers. Numbers that are
# written into the code (`torch.tensor(0.0)`) are another constant in every run of it: those that
# are equal are one.

_MOST_ELEMENTS = 1024


def merge_equal(program: ExportedProgram) -> None:
    """Let what reads equal values read the first of them; one that is an output becomes a copy."""
    graph = program.graph_module.graph
    names = program.graph_signature.inputs_to_lifted_tensor_constants
    first: dict[Hashable, Node] = {}
    for node in graph.find_nodes(op="placeholder"):
        value = program.constants.get(names.get(node.name, ""))
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            continue
        if value.numel() <= _MOST_ELEMENTS:
            # As text NaN is itself, and -0.0 is not 0.0.
            content = (value.dtype, value.shape, str(value.tolist()))
            let_read(node, first.setdefault(content, node))

    def is_function(node: Node) -> bool:
        # A call that gives the same each time.
        attends = op(node) == "scaled_dot_product_attention"
        return (attends and not argument(node, "dropout_p")) or not is_random(node)

    for node, same in merge_calls(graph, is_function):
        # Names of outputs are the program's: the node stays.
        if is_tensor(node):
            node.target, node.args, node.kwargs = torch.ops.aten.clone.default, (same,), {}


def merge_calls(graph: Graph, is_merged: Callable[[Node], bool]) -> list[tuple[Node, Node]]:
    """Leave the first of equal calls of an operator, and those that are outputs.

    Args:
        is_merged: Says which calls may be compared with others.

    Returns:
        Each output that an earlier call equals, and that call.
    """
    first: dict[str, Node] = {}
    outputs: list[tuple[Node, Node]] = []
    for node in list(graph.nodes):
        if node.op != "call_function" or not is_merged(node):
            continue
        same = first.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
        if same is node:
            continue
        let_read(node, same)
        if node.users:
            outputs.append((node, same))
        else:
            # Nothing would erase it later where torch takes it for random: attention, say.
            graph.erase_node(node)
    return outputs
