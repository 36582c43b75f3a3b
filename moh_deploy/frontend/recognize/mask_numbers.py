"""The numbers that a mask is computed with: they tell how large it has to be tried."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sympy
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import size_of
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.cores.softmax import HIDING_FILL

COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
_SHIFTS = frozenset(("bitwise_left_shift", "bitwise_right_shift", "lshift", "rshift"))
_SCALES = _SHIFTS | {"mul", "floor_divide", "div", "remainder", "fmod", "pow", "unfold"}
_SCALES |= {"repeat_interleave", "square"}
# What grows faster or slower than the places of keys: at which of them it acts, no number tells.
_CURVES = frozenset(("log", "log2", "log10", "log1p", "exp", "exp2", "sqrt", "rsqrt", "sin", "cos"))
_CURVES |= {"tan", "tanh", "atan", "sigmoid", "erf", "softplus"}
# Their numbers are dimensions and sizes.
_VIEWS = frozenset(("unsqueeze", "squeeze", "view", "reshape", "expand", "permute", "transpose"))
_VIEWS |= {"cumsum", "sum", "any", "all", "amax", "amin", "max", "min", "cat", "stack", "flip"}
_VIEWS |= {"_to_copy", "to", "clone", "select", "_unsafe_view", "alias", "sym_size", "argmax"}
_LOOKUPS = frozenset(("index", "gather", "index_select", "take", "take_along_dim"))
# Whole numbers above are bounds (the end of a slice), and no sizes of windows.
_LARGEST = 1 << 20


class RowsRead(NamedTuple):
    """An operator reads rows of a table of one size; inputs say which."""

    table: Node
    places: Node
    rows: int  # of the table


@dataclass(frozen=True)
class MaskNumbers:
    """Reads the numbers of a part of a program.

    Args:
        dependent: Nodes that the values of inputs decide.
    """

    dependent: Collection[Node]
    constants: Constants

    def largest(self, part: Sequence[Node]) -> tuple[int, bool]:
        """Return how many keys it takes at most until all numbers act, and whether some multiply or
        divide: then a chain of operators acts at the product of its numbers, else at their sum."""
        reach: dict[Node, int] = {}
        total, scaled = 0, False
        for node in part:
            numbers = list(self._numbers(node))
            total += sum(numbers)
            scaled |= graph.op(node) in _SCALES and node not in self.dependent
            before = max((reach.get(source, 1) for source in node.all_input_nodes), default=1)
            reach[node] = before * math.prod(numbers)
        return (max(reach.values(), default=0) if scaled else total), scaled

    def compared(self, part: Sequence[Node]) -> list[int]:
        """Return the whole numbers that inputs, or what is made of them, may be compared with."""
        found = {
            int(value) + more
            for node in part
            if node in self.dependent and graph.op(node) not in _VIEWS | {"slice"}
            for given in (*node.args[1:], *node.kwargs.values())
            for value in tree_leaves(given)
            if type(value) in (int, float) and value == value // 1 and abs(value) < 1 << 31
            for more in (-1, 0, 1)
        }
        # What a table is looked up with may be any place of it.
        for table in map(self.constants, part) if self.looks_up(part) else ():
            for size in () if table is None else table.shape:
                found |= {size * place // 8 for place in range(8)} | {size - 1}
        return sorted(found)[:48]

    def looks_up(self, part: Sequence[Node]) -> bool:
        """Tell whether inputs say which places of a tensor are read."""
        return any(graph.op(node) in _LOOKUPS and node in self.dependent for node in part)

    def rows_read(self, part: Sequence[Node]) -> dict[Node, RowsRead] | None:
        """Return the operators that read rows of tables where inputs say; None if inputs look
        something up in another way."""
        found: dict[Node, RowsRead] = {}
        for node in part:
            if graph.op(node) not in _LOOKUPS or node not in self.dependent:
                continue
            table, given = node.args[:2]
            read = list(enumerate(given)) if isinstance(given, Sequence) else []
            nodes = [(dim, places) for dim, places in read if isinstance(places, Node)]
            if not isinstance(table, Node) or table in self.dependent or len(nodes) != 1:
                return None
            dim, places = nodes[0]
            rows = graph.shape(table)[dim]
            if not rows.is_Integer or graph.tensor(places).dtype == torch.bool:
                return None
            found[node] = RowsRead(table, places, int(rows))
        return found

    def without_tables(
        self, part: Sequence[Node], reads: Mapping[Node, RowsRead]
    ) -> Collection[Node]:
        """Return a part without the nodes that only make tables, whose rows are read."""
        kept: set[Node] = set()
        for node in reversed(part):
            users = [user for user in node.users if user in part]
            used = [u for u in users if u in kept and not (u in reads and reads[u].table is node)]
            if used or not users:
                kept.add(node)
        return kept

    def unknown(self, part: Sequence[Node]) -> Node | None:
        """Return an operator whose place of action its numbers do not tell, or None."""
        for node in part:
            base = node.args[0] if node.args else None
            if graph.op(node) in _CURVES or (
                graph.op(node) == "pow" and not isinstance(base, Node)
            ):
                return node
        return None

    def _numbers(self, node: Node) -> Iterator[int]:
        """Yield numbers of an operator, or the largest of a stored tensor, as whole ones."""
        name = graph.op(node)
        # Inputs are tried with the numbers that they are compared with.
        if name in _VIEWS or (name in COMPARISONS and node in self.dependent):
            return
        stored = self.constants(node)
        given = [stored] if stored is not None else tree_leaves((node.args, dict(node.kwargs)))
        # Of numbers that are not whole, large ones are what hides: -1e4, say.
        is_float = graph.tensor(node).is_floating_point()
        most = -HIDING_FILL - 1 if is_float else _LARGEST
        for value in given[1:] if name == "slice" else given:
            for number in _values(value):
                size = abs(number)
                if 0 < size < 1:
                    size = 1 / size
                if 1 < size <= most:
                    yield 1 << math.ceil(size) if name in _SHIFTS and size < 20 else math.ceil(size)


def _values(given: object) -> Iterator[float]:
    if isinstance(given, Tensor):
        values = given.double().abs()
        values = values[values.isfinite() & (values > 0)]
        values = values[values < -HIDING_FILL] if given.is_floating_point() else values
        if given.dtype != torch.bool and values.numel():
            yield from {float(values.max()), float(values.min())}
    elif isinstance(given, Node):
        if not graph.is_tensor(given) and isinstance(given.meta.get("val"), torch.SymInt):
            yield from map(float, size_of(given.meta["val"]).atoms(sympy.Integer))
    elif isinstance(given, (int, float)) and math.isfinite(given):
        yield float(given)
