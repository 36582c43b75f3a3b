"""Values that do not depend on the model's inputs, computed with the program's own operators."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, leaves
from moh_deploy.frontend.fx.builder import NotCoveredError, Operand
from moh_deploy.frontend.fx.constants import Constants, is_random
from moh_deploy.frontend.fx.graph import computed, is_tensor, nodes_that_depend_on, reads_first
from moh_deploy.frontend.fx.views import history


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
        for node in graph.nodes:
            if self._can_be_known(node):
                self._known.add(node)
        self._values: dict[Node, object] = {}

    def __contains__(self, node: Node) -> bool:
        """False for a node that depends on an input, on a dynamic size or on chance."""
        return node in self._known

    def __call__(self, node: Node) -> Tensor | None:
        """The node's value; None where it is not known."""
        if node not in self._known:
            return None
        for current in reads_first(node, self._missing):
            if current not in self._values:
                self._values[current] = self._compute(current)
        found = self._values[node]
        return found if isinstance(found, Tensor) else None

    def _missing(self, node: Node) -> Sequence[Node]:
        return () if node in self._values else node.all_input_nodes

    def varies(self, node: Node) -> bool:
        """True for a node whose value depends on the model's inputs."""
        return node in self._dynamic

    def _can_be_known(self, node: Node) -> bool:
        if node in self._dynamic:
            return False
        if node.op == "call_function":
            return _is_repeatable(node) and all(n in self._known for n in node.all_input_nodes)
        return node.op == "placeholder" and self._constant(node) is not None

    def _compute(self, node: Node) -> object:
        if node.op != "call_function":
            return self._constant(node)
        with torch.no_grad():
            return computed(node, self._values.__getitem__)

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
    return _grouped(value, groups, set(order))


def _grouped(value: Tensor, groups: Sequence[Dim], present: set[Axis]) -> Tensor:
    # ... and are expanded where another axis of their group is there: a reshape needs them.
    shape: list[int] = []
    position = 0
    for group in groups:
        extents = list(value.shape[position : position + len(group)])
        if present & set(group):
            full = [
                extent if axis in present else int(axis.size)
                for axis, extent in zip(group, extents, strict=True)
            ]
            value = value.expand(
                *value.shape[:position], *full, *value.shape[position + len(group) :]
            )
            extents = full
        shape.append(torch.Size(extents).numel())
        position += len(group)
    return value.reshape(shape)


def one_axis_a_dim(value: Tensor, groups: Sequence[Dim]) -> tuple[Tensor, Dim]:
    """A tensor of one dimension for each group, cut into one for each axis; and those axes."""
    held = [leaves(group) for group in groups]
    sizes = [
        size for dim, count in zip(held, value.shape, strict=True) for size in _sizes(dim, count)
    ]
    return value.reshape(sizes), tuple(axis for dim in held for axis in dim)


def _sizes(dim: Dim, extent: int) -> list[int]:
    """Sizes of a dimension's axes, of which one may be symbolic."""
    if sum(not axis.size.is_Integer for axis in dim) > 1:
        raise NotCoveredError("the batch has several dynamic dimensions")
    sizes = [int(axis.size) if axis.size.is_Integer else -1 for axis in dim]
    known = torch.Size([size for size in sizes if size >= 0]).numel()
    return [extent // known if size < 0 else size for size in sizes]
