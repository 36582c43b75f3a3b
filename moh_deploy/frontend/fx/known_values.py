"""Values that do not depend on the model's inputs, computed with the program's own operators."""

import operator
from collections.abc import Iterable, Sequence

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from moh_deploy.frontend.fx.axes import Dim, Layout, Size, leaves, product
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.graph import (
    computed,
    is_tensor,
    nodes_that_depend_on,
    reads_first,
    reads_shape_only,
    shape,
    tensor,
)
from moh_deploy.frontend.fx.views import history

# Values that are known before the model runs.


class Constants:
    """Looks up the value of a parameter, buffer or constant tensor of a program."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._values = {**program.state_dict, **program.constants}

    def __call__(self, node: Node) -> torch.Tensor | None:
        found = self._values.get(self._names.get(node.name, ""))
        return found if isinstance(found, torch.Tensor) else None

    def name(self, node: Node) -> str | None:
        """Return what the model calls it; None for any other node."""
        return self._names.get(node.name)


class StoredNodes:
    """Tells which nodes' values follow from parameters, buffers and constant tensors alone.

    Args:
        graph: It may grow later.
    """

    def __init__(self, graph: Graph, constant: Constants) -> None:
        self._constant = constant
        self._stored: dict[Node, bool] = {}
        for node in graph.nodes:  # in order, so that asking for one never goes deep
            self(node)

    def __call__(self, node: Node) -> bool:
        if node not in self._stored:
            # An operator without inputs may be `arange` of a number, but also `rand`: neither is
            # stored.
            sources = node.all_input_nodes
            if node.op != "call_function":
                self._stored[node] = self._constant(node) is not None
            else:
                drawn = not sources or is_random(node) or reads_shape_only(node)
                self._stored[node] = not drawn and all(map(self, sources))
        return self._stored[node]


def is_random(node: Node) -> bool:
    """True for an operator that may draw random numbers, whether it does so here or not."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags
    )


class KnownValues:
    """Computes nodes that depend on parameters, buffers and constants alone.

    Args:
        program: Of nodes that are added to it later, nothing is known.
    """

    def __init__(self, program: ExportedProgram) -> None:
        graph = program.graph_module.graph
        self._constant = Constants(program)
        self._dynamic = nodes_that_depend_on(graph, program.graph_signature.user_inputs)
        self._known: set[Node] = set()
        for node in graph.nodes:  # in order: what a node reads was looked at before
            if node.op == "placeholder":
                is_known = self._constant(node) is not None
            else:
                is_known = _is_repeatable(node) and self._known.issuperset(node.all_input_nodes)
            if is_known and node not in self._dynamic:
                self._known.add(node)
        self._values: dict[Node, object] = {}

    def __contains__(self, node: Node) -> bool:
        """False for a node that depends on an input, on a dynamic size or on chance."""
        return node in self._known

    def __call__(self, node: Node) -> Tensor | None:
        """The node's value; None where it is not known."""
        if node not in self._known:
            return None
        values = self._values
        missing = reads_first(node, lambda n: () if n in values else n.all_input_nodes)
        for current in (source for source in missing if source not in values):
            if current.op != "call_function":
                values[current] = self._constant(current)
            else:
                with torch.no_grad():
                    values[current] = computed(current, values.__getitem__)
        found = values[node]
        return found if isinstance(found, Tensor) else None

    def varies(self, node: Node) -> bool:
        """True for a node whose value depends on the model's inputs."""
        return node in self._dynamic

    def over(self, operand: Operand, axes: Sequence[Dim]) -> Tensor | None:
        """An operand's value in float64 with one dimension for each group of axes; None where it is
        not known or varies along other axes. A group that it does not vary along has size 1."""
        # Back from an expanded tensor to what it is a view of, until no axis is left that is not
        # asked for.
        wanted = {axis for group in axes for axis in leaves(group)}
        for node, layout in history(operand.node, operand.layout):
            if all(axis in wanted for dim in layout for axis in leaves(dim)):
                value = self(node)
                return None if value is None else arranged(value.double(), layout, axes)
        return None


def _is_repeatable(node: Node) -> bool:
    """True for a call that has no effect, and gives the same each time."""
    target = node.target
    return target is operator.getitem or (
        isinstance(target, torch._ops.OpOverload)
        and not is_random(node)
        and not target._schema.is_mutable
        and (is_tensor(node) or isinstance(node.meta.get("val"), (list, tuple)))
    )


def arranged(value: Tensor, layout: Layout, axes: Sequence[Dim]) -> Tensor:
    """A tensor of layout `layout` with one dimension for each group of axes.

    Axes that it lacks get their full size where others of their group are present; a group that is
    lacking altogether gets size 1.

    Raises:
        NotCoveredError: If it varies along other axes.
    """
    value, order = one_axis_a_dim(value, layout)
    groups = [leaves(group) for group in axes]
    wanted = [axis for group in groups for axis in group]
    if not set(order) <= set(wanted):
        raise NotCoveredError("a tensor varies along an axis that attention does not have")
    # One dimension an axis, in the wanted order; axes that it lacks have size 1 ...
    value = value.permute([order.index(axis) for axis in wanted if axis in order])
    for position, axis in enumerate(wanted):
        if axis not in order:
            value = value.unsqueeze(position)
    # ... and are expanded where another axis of their group is there: a reshape needs them.
    present = set(order)
    sizes = iter(value.shape)
    full = [
        [
            int(axis.size) if axis not in present and present & set(group) else size
            for axis, size in zip(group, sizes, strict=False)
        ]
        for group in groups
    ]
    shape = [torch.Size(extents).numel() for extents in full]
    return value.expand([extent for extents in full for extent in extents]).reshape(shape)


def one_axis_a_dim(value: Tensor, groups: Sequence[Dim]) -> tuple[Tensor, Dim]:
    """A tensor of one dimension for each group, cut into one for each axis; and those axes."""
    held = [leaves(group) for group in groups]
    sizes: list[int] = []
    for dim, extent in zip(held, value.shape, strict=True):
        # One axis of a dimension may be symbolic: its size is what the others leave.
        if sum(not axis.size.is_Integer for axis in dim) > 1:
            raise NotCoveredError("the batch has several dynamic dimensions")
        known = int(product(axis for axis in dim if axis.size.is_Integer))
        sizes += [int(axis.size) if axis.size.is_Integer else extent // known for axis in dim]
    return value.reshape(sizes), tuple(axis for dim in held for axis in dim)


# The value of a tensor that no input changes, such as gates that learned queries choose.
#
# Its shape may depend on inputs: `latents.expand(batch, -1, -1)` repeats weights for each image.

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
    part = [inner for inner in reads_first(node, _read_values) if inner.op == "call_function"]
    read = {source for inner in part for source in _read_values(inner)}
    inputs = (source for source in read if source.op == "placeholder")
    if any(map(is_random, part)) or any(constant(source) is None for source in inputs):
        return None
    example = _example_sizes(part)
    if example is None:
        return None
    # Each dynamic size enlarged by another number, and each reduced in the same way.
    larger = {item: size + 1 + i for i, (item, size) in enumerate(example.items())}
    smaller = {item: max(1, size - 1 - i) for i, (item, size) in enumerate(example.items())}
    variations = [example, larger, smaller] if example else [example]
    first, *runs = (_value(node, part, constant, sizes) for sizes in variations)
    # A size that the model does not take tells nothing; but one other has to be taken.
    others = [run for run in runs if run is not None]
    if first is None or (example and not others):
        return None
    return first if all(_is_same(first, other) for other in others) else None


def _read_values(node: Node) -> Iterable[Node]:
    """Return the nodes whose elements a node reads; sizes are known without those."""
    if reads_shape_only(node):
        return ()
    sizes = (int, float, bool, torch.SymInt, torch.SymFloat)
    return [n for n in node.all_input_nodes if not isinstance(n.meta.get("val"), sizes)]


def _example_sizes(part: Sequence[Node]) -> _Sizes | None:
    """The size of each dynamic dimension that a part depends on; None if the data decide one."""
    found: _Sizes = {}
    for node in (*part, *(source for inner in part for source in inner.all_input_nodes)):
        value = node.meta.get("val")
        for extent in value.shape if isinstance(value, Tensor) else (value,):
            if not isinstance(extent, torch.SymInt):
                continue
            known = getattr(extent.node.shape_env, "backed_var_to_val")  # noqa: B009  of torch
            for symbol in extent.node.expr.free_symbols:
                if symbol not in known:
                    return None
                found[symbol] = int(known[symbol])
    return found


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
