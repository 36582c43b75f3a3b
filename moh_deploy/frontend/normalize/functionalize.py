"""Replace in-place operators by their functional twins, where that is a matter of names, and
regions that set a mode by their operators.
"""

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.graph import ancestors, source_line
from moh_deploy.frontend.quiet import no_warnings

_REGIONS = (
    torch.ops.higher_order.wrap_with_autocast,
    torch.ops.higher_order.wrap_with_set_grad_enabled,
    torch.ops.higher_order.wrap_activation_checkpoint,
    torch.ops.higher_order.tag_activation_checkpoint,
)


def functionalize(program: ExportedProgram) -> ExportedProgram:
    """Return the program without in-place operators, and without regions that set a mode.

    What is under `torch.autocast` or `torch.enable_grad` is traced as a graph of its own. Torch
    writes it out, with the casts that autocast makes, when it traces the program again.

    An in-place operator whose input is not seen through any other view is renamed, and later
    readers read its result: that costs nothing. Anything else is left to torch, which traces the
    program again.
    """
    graph = program.graph_module.graph
    calls = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    in_place = [node for node in calls if node.target._schema.is_mutable]
    regions = any(node.target in _REGIONS for node in graph.nodes)
    if not in_place and not regions:
        return program
    order = {node: position for position, node in enumerate(graph.nodes)}
    if regions or not all(_functional(node) and _private(node, order) for node in in_place):
        # Drop what a file may say of inner modules: the names of pieces that an inner module
        # returns change when torch traces a program again, and torch refuses the old ones.
        for call in program.module_call_graph[1:]:
            call.signature = None
        with no_warnings():  # torch's, about its own code
            traced_again: ExportedProgram = program.run_decompositions({})
        return traced_again
    for node in in_place:
        mutated, twin = node.args[0], _functional(node)
        assert isinstance(mutated, Node)
        assert twin is not None
        node.target = twin
        for user in list(mutated.users):
            if user is not node and order.get(user, len(order)) > order[node]:
                user.replace_input_with(mutated, node)
    program.graph_module.recompile()
    return program


def _functional(node: Node) -> torch._ops.OpOverload | None:
    """The functional twin: same name without the trailing underscore, same overload."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    namespace, name = target._schema.name.split("::")
    if not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    if packet is None or target._overloadname not in packet.overloads():
        return None
    twin = getattr(packet, target._overloadname)
    return twin if isinstance(twin, torch._ops.OpOverload) else None


def _private(node: Node, order: dict[Node, int]) -> bool:
    """True where nothing else that shares the mutated tensor's memory is read afterwards."""
    mutated = node.args[0]
    if not isinstance(mutated, Node) or mutated.op != "call_function":
        return False
    root = mutated
    while _is_alias(root) and isinstance(root.args[0], Node):
        root = root.args[0]
    if root.op != "call_function":
        return False
    aliases, stack = {root}, [root]
    while stack:
        for user in stack.pop().users:
            if _is_alias(user) and user not in aliases:
                aliases.add(user)
                stack.append(user)
    aliases = {alias for alias in aliases if order[alias] < order[node]} - {mutated}
    return not any(
        user is not node and order.get(user, len(order)) > order[node]
        for alias in aliases
        for user in alias.users
    )


def _is_alias(node: Node) -> bool:
    """True where the result may share memory with the first argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target is not None and getattr(target, "__name__", "") == "getitem"
    if target._schema.name in ("aten::reshape", "aten::contiguous", "aten::flatten", "aten::to"):
        return True
    return any(result.alias_info is not None for result in target._schema.returns)


# Leave out state that a model changes and no output ever depends on.
#
# Routers keep count in buffers: how often a head was chosen, a moving average of the load. Training
# code reads them. A package has no such reader, and what it computes does not depend on them.


def drop_unread_state(program: ExportedProgram) -> None:
    """Drop changes of buffers from a functional program's outputs if its results read none of them.

    A buffer that the results do read, or that is written into one of them, is state: all changes
    stay then, and are reported elsewhere.
    """
    signature = program.graph_signature
    changed = signature.buffers_to_mutate
    if not changed:
        return
    output = next(node for node in program.graph.nodes if node.op == "output")
    results = list(zip(signature.output_specs, output.args[0], strict=True))
    kept = [(spec, node) for spec, node in results if spec.kind is not OutputKind.BUFFER_MUTATION]
    read = ancestors(*(node for _, node in kept if isinstance(node, Node)))
    if any(signature.inputs_to_buffers.get(node.name) in changed.values() for node in read):
        return
    output.args = (tuple(node for _, node in kept),)
    signature.output_specs[:] = [spec for spec, _ in kept]


def refuse_mutations(program: ExportedProgram) -> None:
    """Refuse a program that changes its inputs, or state that a result depends on.

    Raises:
        ExportError: Naming what is changed, and the line that does it.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    for spec in program.graph_signature.output_specs:
        if spec.kind is OutputKind.USER_OUTPUT:
            continue
        place = source_line(nodes[spec.arg.name])  # of the operator that computes the new value
        at = "" if place is None else f", at {place}"
        if spec.kind is OutputKind.USER_INPUT_MUTATION:
            raise ExportError(
                f"the model writes into its input '{spec.target}'{at}.",
                hint="Let it work on a copy: x = x * 2 instead of x *= 2.",
            )
        raise ExportError(
            f"the model changes its own state while it runs: '{spec.target}'{at}.",
            hint="Pass state such as a KV cache as inputs and outputs; change what training alone"
            " needs under `if self.training`.",
        )
