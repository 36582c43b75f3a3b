"""Routers of parts of an attention's tokens, each with weights of its own, as one router of all.

Two streams that attend together are gated by `cat([route(a(x)), route(b(y))], tokens)`. What a
router does behind its projection it does for each token by itself: that is
`route(cat([a(x), b(y)], tokens))`, one choice of heads, where both do the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import argument, arguments, is_tensor, op, rank, shape, tensor
from moh_deploy.frontend.fx.known_values import is_random

aten = torch.ops.aten

_SELECTIONS = frozenset(["topk", "sort", "argsort", "argmax", "max", "kthvalue"])
# Of a router, operators that are looked at: a router is a dozen of them.
_MOST_NODES = 100

_Parts = tuple[Node, ...]


def join_routers(node: Node) -> None:
    """Let one router take over where the gates of several are joined along tokens."""
    if op(node) != "cat" or not is_tensor(node):
        return
    parts = cast(Sequence[Node], node.args[0])
    dim = cast(int, argument(node, "dim", 0)) % rank(node)
    if len(parts) < 2 or any(part is parts[0] for part in parts[1:]):
        return
    joiner = _Joiner(GraphBuilder(node.graph, node))
    try:
        joined = joiner.joined(tuple(parts), dim)
    except _DifferError:
        return
    # What ranks nothing is no router; what was inserted for it is dead code.
    if joiner.ranks and shape(joined) == shape(node):
        node.replace_all_uses_with(joined)


class _DifferError(Exception):
    """The routers cannot be one."""


class _Joiner:
    """Inserts what routers compute as operators on the tokens of all.

    Attributes:
        ranks: A ranking of heads is among them.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._found: dict[tuple[_Parts, int], Node] = {}
        self.ranks = False

    def joined(self, parts: _Parts, dim: int) -> Node:
        """One tensor for those that the routers have in one place.

        Args:
            dim: The dimension of the tokens.
        """
        # Of two dtypes a concatenation makes one: here earlier than the model does.
        kinds = {
            (tensor(part).dtype, *shape(part)[:dim], *shape(part)[dim + 1 :]) for part in parts
        }
        if len(kinds) > 1:
            raise _DifferError
        found = self._operator(parts, dim)
        if found is None:
            found = self._builder.call(aten.cat.default, list(parts), dim)
            self._found[parts, dim] = found
        return found

    def _operator(self, parts: _Parts, dim: int) -> Node | None:
        """The operator that made each part, on what all of them read; None for a projection, or
        another operator that is not known to work on each token by itself."""
        if (parts, dim) in self._found:
            return self._found[parts, dim]
        if len(self._found) > _MOST_NODES:
            raise _DifferError
        first = parts[0]
        rule, target = _RULES.get(op(first)), first.target
        if rule is None and isinstance(target, torch._ops.OpOverload) and is_tensor(first):
            pointwise = torch.Tag.pointwise in target.tags or op(first) in ("where", "masked_fill")
            rule = _elementwise if pointwise and not is_random(first) else None
        if rule is None or any(part.target is not first.target for part in parts):
            return None
        given = [arguments(part) for part in parts]
        read = [rule(part, mapping, dim) for part, mapping in zip(parts, given, strict=True)]
        sources = read[0]
        if sources is None or any(mapping != sources for mapping in read):
            return None
        # All arguments but the tensors have to be the same.
        plain = [{k: v for k, v in mapping.items() if k not in sources} for mapping in given]
        if any(mapping != plain[0] for mapping in plain):
            return None
        joined: dict[str, object] = dict(given[0])
        for name, source_dim in sources.items():
            values = [mapping[name] for mapping in given]
            joined[name] = self._argument(values, source_dim)
            if joined[name] is None:
                return None
        self.ranks |= op(first) in _SELECTIONS
        self._found[parts, dim] = self._builder.apply(target, joined)
        return self._found[parts, dim]

    def _argument(self, values: Sequence[object], dim: int | None) -> object:
        """What stands for the tensors that the operators of all parts read in one place, or for
        lists of them; or None."""
        first = values[0]
        if dim is None:
            return first if all(value is first for value in values) else None
        if isinstance(first, (list, tuple)):
            lists = cast(Sequence[Sequence[object]], values)
            if len({len(list_) for list_ in lists}) > 1:
                return None
            entries = [self._argument(list_, dim) for list_ in zip(*lists, strict=True)]
            return None if None in entries else entries
        operands = cast(_Parts, tuple(values))
        # Several results, as of a top-k, are no tensor that could be concatenated.
        return (self.joined if is_tensor(first) else self._operator)(operands, dim)


# The tensors among an operator's arguments, each with its dimension of tokens; None without
# tokens.
_Sources = dict[str, int | None]


def _elementwise(node: Node, given: Mapping[str, object], dim: int) -> _Sources | None:
    sources: _Sources = {}
    for name, value in given.items():
        if not is_tensor(value):
            continue
        operand = cast(Node, value)
        own = dim - (rank(node) - rank(operand))
        has_tokens = own >= 0 and shape(operand)[own] == shape(node)[dim]
        sources[name] = own if has_tokens else None
    return sources


def _along(node: Node, given: Mapping[str, object], dim: int) -> _Sources | None:
    """An operator along dimensions that are not the tokens', and may be lost."""
    source = cast(Node, given["self"])
    dims = given.get("dim")
    if isinstance(dims, int):
        dims = [dims]
    if not isinstance(dims, (list, tuple)) or not dims:
        return None
    worked_on = {cast(int, dim) % rank(source) for dim in dims}
    kept = [axis for axis in range(rank(source)) if axis not in worked_on]
    value = node.meta["val"]  # several, of a top-k or a split
    dims_of_result = (value if isinstance(value, torch.Tensor) else value[0]).dim()
    if dims_of_result not in (rank(source), len(kept)):
        return None
    own = dim if rank(source) == dims_of_result else kept[dim]
    return None if own in worked_on else {"self": own}


def _indexed(node: Node, given: Mapping[str, object], dim: int) -> _Sources | None:
    """gather and scatter: every tensor has the dimensions of the result."""
    tensors = [name for name, value in given.items() if is_tensor(value)]
    whole = all(shape(cast(Node, given[name]))[dim] == shape(node)[dim] for name in tensors)
    apart = cast(int, given["dim"]) % rank(node) != dim
    return dict.fromkeys(tensors, dim) if whole and apart else None


def _unsqueezed(node: Node, given: Mapping[str, object], dim: int) -> _Sources | None:
    position = cast(int, given["dim"]) % rank(node)
    return None if position == dim else {"self": dim - (position < dim)}


def _same_place(node: Node, given: Mapping[str, object], dim: int) -> _Sources:
    return {"self": dim}


_Rule = Callable[[Node, Mapping[str, object], int], _Sources | None]

_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(("softmax", "log_softmax", "topk", "sort", "argsort", "argmax"), _along),
    **dict.fromkeys(("max", "kthvalue", "cumsum", "sum", "mean", "amax", "amin"), _along),
    **dict.fromkeys(("slice", "narrow", "select", "squeeze"), _along),
    **dict.fromkeys(("gather", "scatter", "scatter_add"), _indexed),
    **dict.fromkeys(
        ("zeros_like", "ones_like", "full_like"), lambda node, given, dim: {"self": dim}
    ),
    **dict.fromkeys(
        ("to", "to_copy", "clone", "contiguous", "alias", "detach"),
        lambda node, given, dim: {"self": dim},
    ),
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _along),
    # Along another dimension, such as that of shared and routed heads.
    "cat": lambda node, given, dim: (
        None if cast(int, given["dim"]) % rank(node) == dim else {"tensors": dim}
    ),
    "getitem": lambda node, given, dim: {"0": dim},
    "unsqueeze": _unsqueezed,
    "one_hot": lambda node, given, dim: {"self": dim} if dim < rank(node) - 1 else None,
}
