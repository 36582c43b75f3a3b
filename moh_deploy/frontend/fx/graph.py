"""Reading an exported graph: the operator of a node, its shape, what depends on what."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph, Node
from torch.fx.node import Argument, map_arg

from moh_deploy.frontend.fx.axes import Size, size_of

# The line of the user's code that a node was traced from, for reasons that users read.

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_OURS = str(Path(__file__).parents[1])


def named(node: Node) -> str:
    """Return what a reason calls an operator: `tanh (models/attention.py:88)`."""
    place = source_line(node)
    return op(node) if place is None else f"{op(node)} ({place})"


def source_line(node: Node) -> str | None:
    """Return `models/attention.py:88`; None where the trace does not say.

    The file is told from its directory on: a package does not say where its author keeps things.
    """
    # torch: the outermost call comes first, and lines of torch and of this package may follow those
    # of the user.
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    users = [
        (path, line)
        for path, line in frames
        if "/torch/" not in f"/{path}" and not path.startswith((_OURS, "<"))
    ]
    if not users:
        return None
    path, line = users[-1]
    return f"{'/'.join(Path(path).parts[-2:]).lstrip('/')}:{line}"


# Add tensors that are computed at export to a program.


def add_constant(program: ExportedProgram, name: str, value: Tensor) -> Node:
    """Return a new node that has this value.

    Args:
        name: Of the node; a number is added where it is taken.
    """
    graph = program.graph_module.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        node: Node = graph.placeholder(name)
    node.target = node.name
    value = value.detach()
    node.meta["val"] = fake_mode(graph).from_tensor(value, static_shapes=True)
    spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(name=node.name), node.name)
    program.graph_signature.input_specs.insert(0, spec)
    program.constants[node.name] = value
    return node


_SIZES = ("sym_size", "sym_numel", "sym_stride")
_FILLED = ("ones", "zeros", "full", "empty", "arange")
_FILLED_LIKE = ("ones_like", "zeros_like", "full_like", "empty_like", "rand_like")
_FILLED_NEW = ("new_ones", "new_zeros", "new_full", "new_empty")
_SHAPE_ONLY = frozenset((*_SIZES, *_FILLED, *_FILLED_LIKE, *_FILLED_NEW))


# `_safe_softmax` is 0, not NaN, in rows of -inf.
SOFTMAXES = ("softmax", "safe_softmax")


def op(node: Node) -> str:
    """Name of a node's operator without overload or in-place mark: `softmax`; else empty."""
    if node.op != "call_function":
        return ""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        # aten::_softmax -> softmax, aten::add_ -> add
        return target._schema.name.split("::")[-1].rstrip("_").lstrip("_")
    return cast(str, getattr(target, "__name__", ""))


def argument(node: Node, name: str, default: object = None) -> object:
    """Value of an operator's argument by its schema name, wherever the call put it."""
    # A call leaves out what has its default, and has the others by place or by keyword.
    assert isinstance(node.target, torch._ops.OpOverload)
    for position, formal in enumerate(node.target._schema.arguments):
        if formal.name != name:
            continue
        if position < len(node.args):
            return node.args[position]
        return node.kwargs.get(
            name, formal.default_value if formal.has_default_value() else default
        )
    return default


def arguments(node: Node) -> dict[str, object]:
    """Return all arguments of a call by name; of a Python function by place."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(position): value for position, value in enumerate(node.args)}
    return {formal.name: argument(node, formal.name) for formal in node.target._schema.arguments}


def reads_shape_only(node: Node) -> bool:
    """True for a node that does not look at the values of its arguments."""
    return op(node) in _SHAPE_ONLY


def is_tensor(node: object) -> bool:
    return isinstance(node, Node) and isinstance(node.meta.get("val"), torch.Tensor)


def tensor(node: Node) -> torch.Tensor:
    """The fake tensor that carries the node's shape and dtype."""
    fake = node.meta["val"]
    assert isinstance(fake, torch.Tensor), f"{node} is not a tensor"
    return fake


def shape(node: Node) -> tuple[Size, ...]:
    return tuple(size_of(extent) for extent in tensor(node).shape)


def rank(node: Node) -> int:
    return tensor(node).dim()


def hint(extent: object) -> int:
    """The example's value of a size."""
    node = getattr(extent, "node", None)
    return int(node.hint if node is not None else cast(int, extent))


def example_shape(node: Node) -> tuple[int, ...]:
    return tuple(hint(extent) for extent in tensor(node).shape)


def fake_mode(graph: Graph) -> FakeTensorMode:
    """The mode in which the graph's fake tensors were made."""
    values = (node.meta.get("val") for node in graph.nodes)
    return next(value.fake_mode for value in values if isinstance(value, FakeTensor))


def tensor_inputs(node: Node) -> tuple[Node, ...]:
    return tuple(source for source in node.all_input_nodes if is_tensor(source))


def is_function_of_elements(node: Node) -> bool:
    """True for an operator of one tensor that computes each element of its own: `relu`, `exp`."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.pointwise in target.tags
        and len(tensor_inputs(node)) == 1
    )


def module_path(node: Node) -> tuple[str, ...]:
    """Path of the innermost module a node was traced in: `("blocks", "0", "attn")`."""
    stack = node.meta.get("nn_module_stack") or {}
    path = ""
    for entry in stack.values():
        path = entry[0]
    return tuple(part for part in path.split(".") if part)


def nodes_that_depend_on(graph: Graph, sources: Sequence[str]) -> set[Node]:
    """Nodes whose values (not only whose shapes) depend on the named placeholders."""
    # In execution order, one pass: what a node reads was looked at before. A tensor of ones in the
    # shape of an input depends on no value of it.
    wanted, dependent = set(sources), set[Node]()
    for node in graph.nodes:
        if node.op == "placeholder":
            if node.name in wanted:
                dependent.add(node)
        elif not reads_shape_only(node) and any(arg in dependent for arg in node.all_input_nodes):
            dependent.add(node)
    return dependent


def let_read(old: Node, new: Node) -> None:
    """Let readers read another node; not the output, whose names are the program's."""
    if old is not new:
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user.op != "output")


def ancestors(*nodes: Node, stop: Collection[Node] = ()) -> Iterator[Node]:
    """The nodes and what they are computed from, nearest first, not entering `stop`."""
    seen, queue = set(nodes), list(nodes)
    while queue:
        current = queue.pop(0)
        yield current
        for source in () if current in stop else current.all_input_nodes:
            if source not in seen:
                seen.add(source)
                queue.append(source)


def reads_first(node: Node, reads: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """A node and what it is computed from, each behind all that `reads` says it reads."""
    # Depth first without recursion (graphs are thousands of nodes deep): a node is met twice, the
    # second time when all that it reads has been put in order.
    order: dict[Node, None] = {}
    stack = [(node, False)]
    while stack:
        current, expanded = stack.pop()
        if expanded:
            order[current] = None
        elif current not in order:
            stack.append((current, True))
            stack.extend((source, False) for source in reads(current))
    return list(order)


def computed(node: Node, value_of: Callable[[Node], object]) -> object:
    """Run the operator of a node on values of the nodes that it reads."""
    args, kwargs = map_arg(
        (node.args, dict(node.kwargs)), cast(Callable[[Node], Argument], value_of)
    )
    return cast(Callable[..., object], node.target)(*args, **kwargs)
