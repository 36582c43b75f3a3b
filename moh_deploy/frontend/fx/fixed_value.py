"""The value of a tensor that no input changes, such as gates that learned queries choose.

Its shape may depend on inputs: `latents.expand(batch, -1, -1)` repeats weights for each image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import sympy  # type: ignore[import-untyped, unused-ignore]
import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Size
from moh_deploy.frontend.fx.constants import Constants, is_random
from moh_deploy.frontend.fx.graph import (
    computed,
    is_tensor,
    reads_first,
    reads_shape_only,
    shape,
    tensor,
)

_Sizes = dict[sympy.Symbol, int]


def fixed_value(node: Node, constant: Constants) -> Tensor | None:
    """Return what a tensor holds whatever the inputs are.

    It is computed at several sizes: what a size changes, such as a position that is counted from
    the end, is not fixed.

    Args:
        constant: Value of a constant node; None for an input of the model.

    Returns:
        The value at the example's sizes, with size 1 along each dimension of dynamic size; None if
        an input, a size or chance changes it.
    """
    if node.op == "placeholder":
        return constant(node)
    part = _part_of(node, constant)
    example = None if part is None else _example_sizes(part)
    if part is None or example is None:
        return None
    runs = [_value(node, part, constant, sizes) for sizes in _variations(example)]
    if runs[0] is None:
        return None
    # A size that the model does not take tells nothing; but one other has to be taken.
    others = [run for run in runs[1:] if run is not None]
    if example and not others:
        return None
    return runs[0] if all(_is_same(runs[0], other) for other in others) else None


def _part_of(node: Node, constant: Constants) -> list[Node] | None:
    """The operators that compute a node, in order; None if it hangs on an input or on chance."""
    part = [inner for inner in reads_first(node, _read_values) if inner.op == "call_function"]
    for inner in part:
        if is_random(inner) or any(
            source.op == "placeholder" and constant(source) is None
            for source in _read_values(inner)
        ):
            return None
    return part


def _read_values(node: Node) -> Iterable[Node]:
    """Return the nodes whose elements a node reads; sizes are known without those."""
    if reads_shape_only(node):
        return ()
    return [source for source in node.all_input_nodes if not _is_size(source)]


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat))


def _example_sizes(part: Sequence[Node]) -> _Sizes | None:
    """The size of each dynamic dimension that a part depends on; None if the data decide one."""
    found: _Sizes = {}
    for extent in _dynamic_sizes(part):
        known = getattr(extent.node.shape_env, "backed_var_to_val")  # noqa: B009  of torch
        for symbol in extent.node.expr.free_symbols:
            if symbol not in known:
                return None
            found[symbol] = int(known[symbol])
    return found


def _dynamic_sizes(part: Sequence[Node]) -> Iterator[torch.SymInt]:
    for node in (*part, *(source for inner in part for source in inner.all_input_nodes)):
        value = node.meta.get("val")
        sizes = value.shape if isinstance(value, Tensor) else (value,)
        yield from (size for size in sizes if isinstance(size, torch.SymInt))


def _variations(example: _Sizes) -> Iterator[_Sizes]:
    """The example's sizes; each enlarged by another number; and each reduced likewise."""
    yield example
    if example:
        yield {item: size + 1 + i for i, (item, size) in enumerate(example.items())}
        yield {item: max(1, size - 1 - i) for i, (item, size) in enumerate(example.items())}


def _value(node: Node, part: Sequence[Node], constant: Constants, sizes: _Sizes) -> Tensor | None:
    """The node's value at these sizes, without repetitions along dynamic dimensions; None where it
    cannot be computed, or they are no repetitions."""
    known: dict[Node, object] = {}

    def look_up(source: Node) -> object:
        if source in known:
            return known[source]
        stored = constant(source)
        if stored is not None:
            return stored
        if not is_tensor(source):
            return _number(source.meta["val"], sizes)
        # Read for its shape alone.
        extents = [_number(extent, sizes) for extent in tensor(source).shape]
        return torch.empty(extents, dtype=tensor(source).dtype)

    try:
        with torch.no_grad():
            for inner in part:
                known[inner] = computed(inner, look_up)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None
    value = known[node]
    assert isinstance(value, Tensor)
    for dim, extent in enumerate(shape(node)):
        if extent.is_Integer:
            continue
        first = value.narrow(dim, 0, 1)
        if not _is_same(first.expand_as(value), value):
            return None
        value = first
    return value


def _number(extent: object, sizes: _Sizes) -> int:
    expression: Size = getattr(getattr(extent, "node", None), "expr", sympy.sympify(extent))
    return int(expression.xreplace(sizes))


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Equal within rounding, which may differ with the number of rows of a product, and 0 at the
    same places: a head that is closed is closed."""
    if first.shape != second.shape or not torch.equal(first != 0, second != 0):
        return False
    eps = torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0
    close = torch.isclose(first.double(), second.double(), rtol=max(1e-4, 8 * eps), equal_nan=True)
    return bool(close.all())
