"""For which sizes of its dynamic dimensions a traced program is good.

While Python runs, it branches on sizes: `if x.shape[1] > 64`, a table of 512 positions, `n % 8`.
The program has the branch that the example's sizes took, and with it what torch noted: a range of
each size, and assertions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import cast

import sympy
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.graph import argument, op, source_line, tensor
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.load.model import ModelInput, example_sizes
from moh_deploy.package import DimSum

_SMALLEST_TRACED = 2
_WINDOW = 16
_LONGEST_PERIOD = 128
_DOUBLED = 12  # times, to see a limit that is far away
_INEQUALITIES = (sympy.Le, sympy.Lt, sympy.Ge, sympy.Gt)

Ranges = dict[str, tuple[int, int | None]]


def dynamic_axes(
    program: ExportedProgram, inputs: Sequence[ModelInput]
) -> Iterator[tuple[ModelInput, int, DimExpr, sympy.Expr]]:
    """Yield the axes that were declared dynamic, and the sizes that they have in the program: where
    it fixes one, a number.
    """
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for item, name in zip(inputs, program.graph_signature.user_inputs, strict=True):
        shape = placeholders[name].meta["val"].shape
        for axis, expr in item.parsed_dims.items():
            size = shape[axis]
            form = sympy.Integer(size) if isinstance(size, int) else size.node.expr
            limits = program.range_constraints.get(form)
            is_fixed = limits is not None and limits.lower == limits.upper
            yield item, axis, expr, limits.lower if is_fixed else form


def dim_ranges(program: ExportedProgram, inputs: Sequence[ModelInput]) -> Ranges:
    """Return the smallest and largest size of each dimension whose sizes the trace limits.

    Raises:
        ExportError: The trace is good for what recurs among sizes: the multiples of 8, or all
            others.
    """
    symbols = _symbols(program, inputs)
    ranges: Ranges = {}
    for name, symbol in symbols.items():
        limits = program.range_constraints.get(symbol)
        if limits is not None:
            largest = int(limits.upper) if limits.upper.is_Integer else None
            # Torch traces for sizes from 2 on; size 1 is tried on the original model.
            _narrow(ranges, name, int(limits.lower), largest)
    sizes = example_sizes(inputs)
    # What is asserted of several sizes at once, `total == past + seq`, limits none of them.
    names = {symbol: name for name, symbol in symbols.items()}
    for assertion, condition in assertions(program).items():
        (symbol, *others) = assertion.free_symbols
        if symbol in names and not others:
            place = source_line(condition)
            at = "" if place is None else f", at {place}"
            _limit(ranges, names[symbol], assertion, symbol, sizes[names[symbol]], at)
    return ranges


@dataclass(frozen=True)
class Relations:
    """The dimensions that follow from others, as the length of a mask is that of a cache and of new
    tokens: what the program asserts of them. A mask that may be longer and is not in the example
    follows, too.
    """

    # Name of such a dimension to its size, as an expression of the names of others.
    forms: Mapping[str, sympy.Expr]

    @classmethod
    def of(cls, program: ExportedProgram, inputs: Sequence[ModelInput]) -> Relations:
        """Read them from a program."""
        names = {symbol: name for name, symbol in _symbols(program, inputs).items()}
        forms: dict[str, sympy.Expr] = {}
        used: set[str] = set()
        # In a program of a file a size may be a sum itself.
        sums = [
            (sympy.Symbol(expr.name), size)
            for _, _, expr, size in dynamic_axes(program, inputs)
            if expr.is_plain and size.is_Add and size.free_symbols <= names.keys()
        ]
        names |= {symbol: symbol.name for symbol, _ in sums}
        equations = _equations(example_sizes(inputs), names, assertions(program))
        for symbol, form in (*sums, *equations):
            name, others = names.get(symbol), form.free_symbols
            if name is None or name in used or symbol in others or not others:
                continue
            if forms.keys().isdisjoint(names[other] for other in others):
                used |= {names[other] for other in others}
                named = {other: sympy.Symbol(names[other], integer=True) for other in others}
                forms.setdefault(name, form.xreplace(named))
        return cls(forms)

    def complete(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return sizes in which those that follow from others do so."""
        values = {name: _value(form, sizes) for name, form in self.forms.items()}
        return {**sizes, **{name: size for name, size in values.items() if size is not None}}

    def complete_ranges(self, ranges: Mapping[str, tuple[int, int | None]]) -> Ranges:
        """Return ranges in which those of dimensions that follow from others do so."""
        found = {name: limits for name, limits in ranges.items() if name not in self.forms}
        smallest = {name: limits[0] for name, limits in found.items()}
        for name, form in self.forms.items():
            parts = {str(symbol): smallest.get(str(symbol), 0) for symbol in form.free_symbols}
            least = _value(form, parts)
            if least is not None and least > 1:
                found[name] = (least, None)
        return found


def _equations(
    sizes: Mapping[str, int],
    names: Mapping[sympy.Symbol, str],
    assertions: Iterable[sympy.Basic],
) -> Iterator[tuple[sympy.Expr, sympy.Expr]]:
    """Yield both sides of equations, and of `past + seq <= total` where they are equal so far."""
    for assertion in assertions:
        if (
            not isinstance(assertion, (sympy.Eq, sympy.Le, sympy.Ge))
            or not assertion.free_symbols <= names.keys()
        ):
            continue
        left, right = assertion.args
        at = {symbol: sympy.Integer(sizes[names[symbol]]) for symbol in assertion.free_symbols}
        joined = left.is_Add or right.is_Add
        if isinstance(assertion, sympy.Eq) or (joined and left.xreplace(at) == right.xreplace(at)):
            yield left, right
            yield right, left


def _value(form: sympy.Expr, sizes: Mapping[str, int]) -> int | None:
    """Return the size that follows from others; None where it would divide by 0."""
    values = {symbol: sympy.Integer(sizes[str(symbol)]) for symbol in form.free_symbols}
    try:
        return int(form.xreplace(values))
    except ZeroDivisionError:
        return None


def joined_dims(program: ExportedProgram, inputs: Sequence[ModelInput]) -> list[str]:
    """Return the dimensions that something is added to, as tokens are to a cache: such a one may be
    empty, and there still is something to compute.
    """
    sums = {
        expr
        for node in program.graph.nodes
        for size in getattr(node.meta.get("val"), "shape", ())
        if not isinstance(size, int) and (expr := size.node.expr).is_Add
    }
    return [
        name
        for name, symbol in _symbols(program, inputs).items()
        if any(symbol in sum_.args and (sum_ - symbol).is_positive for sum_ in sums)
    ]


def dim_sums(program: ExportedProgram, inputs: Sequence[ModelInput]) -> tuple[DimSum, ...]:
    """Return the dimensions that the program limits together: `past + seq <= 64`."""
    names = {symbol: name for name, symbol in _symbols(program, inputs).items()}
    found: dict[tuple[str, ...], int] = {}
    for assertion in assertions(program):
        symbols = assertion.free_symbols
        if (
            not isinstance(assertion, _INEQUALITIES)
            or len(symbols) < 2
            or not symbols <= names.keys()
        ):
            continue
        rising = isinstance(assertion, (sympy.Le, sympy.Lt))
        most = _most((assertion.lhs - assertion.rhs) * (1 if rising else -1))
        if most is not None:
            limit = most - isinstance(assertion, (sympy.Lt, sympy.Gt))
            dims = tuple(sorted(names[symbol] for symbol in symbols))
            found[dims] = min(limit, found.get(dims, limit))
    return tuple(DimSum(dims, most) for dims, most in found.items())


def cut_tables(program: ExportedProgram, inputs: Sequence[ModelInput]) -> list[DimSum]:
    """Return the limits of weights that are cut at a length which follows from sizes, as
    `positions[:seq]` is. Beyond its last row a cut returns fewer.
    """
    names = {symbol: name for name, symbol in _symbols(program, inputs).items()}
    weights = Constants(program)
    found: list[DimSum] = []
    for node in program.graph.nodes:
        table = weights.name(node.args[0]) if op(node) == "slice" else None
        end = argument(node, "end") if table is not None else None
        expr = getattr(getattr(getattr(end, "meta", {}).get("val"), "node", None), "expr", None)
        if expr is None or not expr.free_symbols or not expr.free_symbols <= names.keys():
            continue
        axis = argument(node, "dim")
        assert isinstance(axis, int)
        most = _most(expr - tensor(node.args[0]).shape[axis])
        if most is not None:
            dims = tuple(sorted(names[symbol] for symbol in expr.free_symbols))
            found.append(DimSum(dims, most, table))
    return found


def with_tables(
    sums: Sequence[DimSum], ranges: Ranges, cut: Sequence[DimSum]
) -> tuple[DimSum, ...]:
    """Return limits with the tables that they are of, those of single dimensions included.

    Args:
        sums, ranges: The limits of a program, as far as they were found to be those of the model.
        cut: See `cut_tables`.
    """
    tables = {(dim_sum.dims, dim_sum.most): dim_sum.table for dim_sum in reversed(cut)}
    alone = [DimSum((name,), most) for name, (_, most) in ranges.items() if most is not None]
    named = [replace(sum_, table=tables.get((sum_.dims, sum_.most))) for sum_ in (*sums, *alone)]
    return tuple(dim_sum for dim_sum in named if dim_sum.table is not None or len(dim_sum.dims) > 1)


def _most(excess: sympy.Expr) -> int | None:
    """Return the largest sum of the symbols in an expression that is 0 or less; None where it is
    not about their sum."""
    most = sum(excess.free_symbols, sympy.Integer(0)) - sympy.expand(excess)
    return int(most) if most.is_Integer else None


def unmet_assertions(
    program: ExportedProgram, inputs: Sequence[ModelInput], sizes: Mapping[str, int]
) -> list[str]:
    """Return what a program asserts of sizes that is not so at given ones: `past + seq <= total`.

    Args:
        inputs: The user inputs, in order.
    """
    symbols = _symbols(program, inputs)
    ranges = [
        condition
        for symbol, limits in program.range_constraints.items()
        for condition in (symbol >= max(limits.lower, 0), symbol <= limits.upper)
        if limits.lower > _SMALLEST_TRACED or limits.upper.is_Integer
    ]
    named = {symbol: sympy.Symbol(name, integer=True) for name, symbol in symbols.items()}
    values = {named[symbol]: sympy.Integer(sizes[name]) for name, symbol in symbols.items()}
    asserted = [assertion.xreplace(named) for assertion in (*assertions(program), *ranges)]
    return [str(item) for item in asserted if not _holds(item, values)]


def _symbols(program: ExportedProgram, inputs: Sequence[ModelInput]) -> dict[str, sympy.Symbol]:
    """The symbol that stands for each dimension."""
    symbols: dict[str, sympy.Symbol] = {}
    for _, _, expr, size in dynamic_axes(program, inputs):
        symbol = (size - expr.offset) / expr.multiplier
        if symbol.is_Symbol:
            symbols.setdefault(expr.name, symbol)
    return symbols


def assertions(program: ExportedProgram) -> dict[sympy.Basic, Node]:
    """Return what the program asserts of sizes, each with the node that computes it."""
    found: dict[sympy.Basic, Node] = {}
    for node in program.graph.nodes:
        if node.target is not torch.ops.aten._assert_scalar.default:
            continue
        condition = node.args[0]
        size = getattr(condition, "meta", {}).get("val")
        expr = getattr(getattr(size, "node", None), "expr", None)
        if expr is not None and expr.free_symbols:
            found.setdefault(expr, cast(Node, condition))
    return found


def _limit(
    ranges: Ranges, name: str, assertion: sympy.Basic, symbol: sympy.Symbol, example: int, at: str
) -> None:
    """Narrow a range to where an assertion holds, around the example; one that fails there says
    nothing.

    Args:
        at: The line of the user's code that asserts it, in words.

    Raises:
        ExportError: It fails again and again.
    """
    numbers = [int(atom) for atom in assertion.atoms(sympy.Integer) if atom < _LONGEST_PERIOD]
    window = 3 * max([_WINDOW, *numbers])  # in which what recurs after so many sizes is seen
    near = range(max(1, example - window), example + window + 1)
    far = (example << doubled for doubled in range(1, _DOUBLED + 1))
    sizes = sorted({*range(1, window), *near, *far})
    holds = {size for size in sizes if _holds(assertion, {symbol: sympy.Integer(size)})}
    if example not in holds:
        return
    index = sizes.index(example)
    least = min(takewhile(holds.__contains__, reversed(sizes[: index + 1])))
    most = max(takewhile(holds.__contains__, sizes[index:]))
    if most < max(holds):
        _refuse_recurring(name, sizes[index:], holds, at)
    _narrow(ranges, name, least, None if most == sizes[-1] else most)


def _holds(assertion: sympy.Basic, sizes: Mapping[sympy.Symbol, sympy.Integer]) -> bool:
    try:
        return bool(assertion.xreplace(sizes) != sympy.false)
    except ZeroDivisionError:  # n % (n // 4) where n is 3: the model divides by it, too
        return False


def _narrow(ranges: Ranges, name: str, least: int, most: int | None) -> None:
    known_least, known_most = ranges.get(name, (1, None))
    # Size 1 is tried on the original model.
    smallest = max(known_least, least if least > _SMALLEST_TRACED else 1)
    largest = min((size for size in (known_most, most) if size is not None), default=None)
    if smallest > 1 or largest is not None:
        ranges[name] = (smallest, largest)


def _refuse_recurring(name: str, sizes: Sequence[int], holding: set[int], at: str) -> None:
    """Refuse an assertion that fails at sizes which recur; single ones are a limit."""
    for period in range(2, len(sizes) // 2):
        holds = {size % period for size in sizes if size in holding}
        fails = {size % period for size in sizes if size not in holding}
        if not holds & fails:
            break
    else:
        return
    if len(holds) == 1:
        rest = holds.pop()
        form = DimExpr(name, period, rest - period if 2 * rest > period else rest)
        raise ExportError(
            f"dimension '{name}' must be {form}: the model takes another way, or fails, at other"
            f" sizes{at}.",
            hint=f"Declare the axis as {form}; its example {form.evaluate({name: 2})} or more.",
        )
    raise ExportError(
        f"the model takes another way where dimension '{name}' is"
        f" {' or '.join(str(DimExpr(name, period, rest)) for rest in sorted(fails))}{at}.",
        hint="Make it take one way for all sizes: F.pad(x, (0, -n % 8)) pads by 0, too, and needs"
        " no `if n % 8`. Or declare the sizes of one way, with an example of that size:"
        f" {DimExpr(name, period, min(fails))}.",
    )
