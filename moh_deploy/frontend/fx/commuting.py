"""Operators that may be applied before or after dimensions are transposed, with the same result.

An elementwise operator does not care about the order of its operands' dimensions; one that works
along the last dimensions (a normalisation, a slice, a reduction) not about that of the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Layout, fresh_dim
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.graph import argument, is_tensor, op, rank, shape, tensor_inputs
from moh_deploy.frontend.fx.known_values import is_random
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.views import broadcast, casts, is_view


@dataclass(frozen=True)
class Reading:
    """The tensors of an operator whose dimensions may be transposed together with its own."""

    sources: tuple[Operand, ...]  # those tensors, in the axes of the operator's result
    # Dimensions that the operator works along, counted from the end (-1 is the last one) as it
    # counts them; they and all behind them stay where they are. Empty for an elementwise operator.
    along: tuple[int, ...] = ()
    # How many dimensions of the sources stay where they are; None for an elementwise operator,
    # whose sources are broadcast to its result.
    suffix: int | None = None
    result_suffix: int = 0  # how many of the result


def read_commuting(node: Node, layout: Layout) -> Reading | None:
    """Read an operator whose result has this layout; None where it does not commute.

    An entry of an operator with several results (a split) is read as the operator.
    """
    if is_view(node):
        # A cast; the tensor that `type_as` takes the type from is not looked at.
        source = cast(Node, node.args[0])
        same = casts(node) and shape(source) == shape(node)
        return Reading((Operand(source, layout),)) if same else None
    target = node.target
    if (
        isinstance(target, torch._ops.OpOverload)
        and is_tensor(node)
        and (torch.Tag.pointwise in target.tags or op(node) in _UNTAGGED)
        # Random numbers are drawn in the order of elements: another order gives others.
        and not is_random(node)
        and not target._schema.is_mutable
    ):
        layouts = [(source, broadcast(source, layout)) for source in tensor_inputs(node)]
        sources = tuple(Operand(source, found) for source, found in layouts if found is not None)
        return Reading(sources) if len(sources) == len(layouts) else None
    call = called(node)
    read = _READERS.get(op(call))
    return None if read is None else read(call, layout)


# Element-wise by definition, though torch's table of tags leaves them out.
_UNTAGGED = frozenset(["where", "multiply", "divide", "subtract", "negative"])


def called(node: Node) -> Node:
    """The call that a node is the result of, or one of the results."""
    return cast(Node, node.args[0]) if op(node) == "getitem" else node


def with_dims(
    call: Node, along: Sequence[int], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arguments of a call, with the dimensions that it works along as they are in a reading."""
    name, args, kwargs = _dims_argument(call), list(args), dict(kwargs)
    if not along or name is None:
        return tuple(args), kwargs
    dims = along[0] if isinstance(argument(call, name), int) else list(along)
    assert isinstance(call.target, torch._ops.OpOverload)
    position = [formal.name for formal in call.target._schema.arguments].index(name)
    if position < len(args):
        args[position] = dims
    else:
        kwargs[name] = dims
    return tuple(args), kwargs


def _dims_argument(node: Node) -> str | None:
    """The name of the argument that holds the dimensions an operator works along."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [formal.name for formal in node.target._schema.arguments]
    return next((name for name in ("dim", "dims") if name in names), None)


def _fewer_entries(node: Node, layout: Layout) -> Reading | None:
    """Reductions, slices, splits and selections; along dimensions that may be lost."""
    source = cast(Node, node.args[0])
    along = _along(node, rank(source))
    if along is None:
        return None
    removed = rank(source) - len(layout)
    # A reduction [B, S, H, D] -> [B, S, H] lost the dimension that it worked along; a slice kept
    # it, in another size. Either way the source has an axis there that the result has not.
    remaining, dims = iter(layout), []
    for position, extent in enumerate(shape(source)):
        worked_on = position - rank(source) in along
        dim = () if worked_on and removed else next(remaining)
        dims.append(fresh_dim(extent) if worked_on else dim)
    return _reading([Operand(source, tuple(dims))], along, removed=removed)


def _join(node: Node, layout: Layout) -> Reading | None:
    """Concatenations, whose operands differ in size, and stacks, whose operands lack the dim."""
    along = _along(node, rank(node))
    if along is None:
        return None
    # cat: each operand has the dimension in a size of its own; stack: it has not got it.
    (dim,), stacks = along, op(node) == "stack"
    sources = []
    for source in cast(Sequence[Node], node.args[0]):
        if rank(source) != rank(node) - stacks:
            return None
        dims = list(layout)
        dims[dim : dim + 1 or None] = [] if stacks else [fresh_dim(shape(source)[dim])]
        sources.append(Operand(source, tuple(dims)))
    return _reading(sources, along, removed=-1 if stacks else 0)


def _normalisation(node: Node, layout: Layout) -> Reading | None:
    count = len(cast(Sequence[object], argument(node, "normalized_shape")))
    return _reading([_first(node, layout)], tuple(range(-count, 0)), removed=0)


def _linear(node: Node, layout: Layout) -> Reading | None:
    """A product with one matrix for all rows."""
    # [..., K] @ [K, N]: each row by itself, in whatever order they stand.
    source, weight = cast(tuple[Node, Node], node.args[:2])
    if rank(weight) != 2 or rank(source) != rank(node):
        return None
    inner = fresh_dim(shape(source)[-1])
    return _reading([Operand(source, (*layout[:-1], inner))], (-1,), removed=0)


def _first(node: Node, layout: Layout) -> Operand:
    return Operand(cast(Node, node.args[0]), layout)


def _along(node: Node, of_rank: int) -> tuple[int, ...] | None:
    name = _dims_argument(node)
    found = None if name is None else argument(node, name)
    if isinstance(found, int):
        found = [found]
    if not isinstance(found, (list, tuple)) or not found:
        return None
    return tuple(cast(int, dim) % of_rank - of_rank for dim in found)


def _reading(
    sources: Sequence[Operand], along: tuple[int, ...] | None, *, removed: int
) -> Reading | None:
    """Dimensions count from the end: of the sources, or of the result where that has more."""
    if along is None or not all(is_tensor(source.node) for source in sources):
        return None
    # Everything from the first dimension that is worked along to the last one stays in place, so
    # `dim` of the call means the same whatever is transposed in front of it.
    longest = -min(along)
    suffix = longest if removed >= 0 else longest + removed
    return Reading(tuple(sources), along, suffix, longest - max(removed, 0))


_REDUCTIONS = ("sum", "mean", "amax", "amin", "logsumexp", "var", "std", "linalg_vector_norm")
_READERS: dict[str, Callable[[Node, Layout], Reading | None]] = {
    **dict.fromkeys(
        ["softmax", "log_softmax", "cumsum", "cumprod", "flip", "roll"],
        lambda node, layout: _reading([_first(node, layout)], _along(node, rank(node)), removed=0),
    ),
    **dict.fromkeys([*_REDUCTIONS, "norm", *SPLITS, "slice", "narrow", "select"], _fewer_entries),
    **dict.fromkeys(["cat", "stack"], _join),
    **dict.fromkeys(["layer_norm", "rms_norm"], _normalisation),
    "linear": _linear,
    "matmul": _linear,
}
