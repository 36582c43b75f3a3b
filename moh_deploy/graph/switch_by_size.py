"""Nodes whose domain depends on the sizes of the model's inputs: an `If` between the two.

    If(moh.dense if seq<=64, else moh)
      then  Y = moh.dense::MoHAttention(...)     named `blocks.0.attn.MoHAttention (dense)`
      else  Y = moh::MoHAttention(...)           keeps its name

Everything that a node reads stays outside, weights and gates too: runtimes see that weights are
constant, and readers find the gates. A condition is computed once for all nodes that share it.
"""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.ops.op_names import DENSE_DOMAIN, with_base
from moh_deploy.package import NodeRule
from moh_deploy.package.graph_nodes import CONDITION_PREFIX, dense_twin


def with_switches(model: ir.Model, rules: Mapping[str, NodeRule]) -> bool:
    """Put each node that a rule gives more than one domain into an `If`, at its place.

    Args:
        model: A model without such nodes.
        rules: Name of each node to where it belongs.

    Raises:
        PackageError: A rule speaks of a dimension that no input has.
    """
    # A rule of one domain needs no If: `choose_layers` has moved that node.
    by_size = {name: rule for name, rule in rules.items() if rule.domain is None}
    switched = [node for node in model.graph if node.name in by_size]
    if by_size:
        made = _Conditions(model)
        conditions = {str(rule): made.of(rule) for rule in by_size.values()}
        for node in made.nodes:
            # Before all other nodes, in the order in which they were made.
            model.graph.insert_before(made.first, node)
        for node in switched:
            _switch(node, conditions[str(by_size[node.name or ""])])
    return bool(switched)


def without_switches(model: ir.Model) -> bool:
    """Take back all that `with_switches` did: each node stands where it stood, in domain `moh`."""
    switches = [node for node in model.graph if _is_switch(node)]
    for node in switches:
        _unswitch(node)
    # From the last to the first, as each condition is read by those behind it.
    for node in reversed(list(model.graph)):
        if (node.name or "").startswith(CONDITION_PREFIX):
            model.graph.remove(node, safe=True)
    return bool(switches)


def switch_rules_of(model: ir.Model) -> dict[str, str]:
    """Return the name of each node in an `If` to its rule's text."""
    return {
        _kernel_node(node).name or "": _rule_text(node) for node in model.graph if _is_switch(node)
    }


def _is_switch(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == ("", "If") and _rule_text(node) != ""


def _rule_text(node: ir.Node) -> str:
    name = (node.inputs[0].name if node.inputs[0] is not None else None) or ""
    return name.removeprefix(CONDITION_PREFIX) if name.startswith(CONDITION_PREFIX) else ""


def _kernel_node(switch: ir.Node) -> ir.Node:
    return switch.attributes["else_branch"].as_graph()[0]


def _switch(node: ir.Node, condition: ir.Value) -> None:
    # Both branches are graphs without inputs: their node reads values of the graph around them.
    graph, name = node.graph, node.name
    assert isinstance(graph, ir.Graph)
    assert name is not None
    # Both branches hold the same node in other domains; the kernel's keeps the name.
    dense = _copied(node, with_base(node.domain, DENSE_DOMAIN), dense_twin(name))
    sparse = _copied(node, node.domain, name)
    branches = {
        key: ir.Graph([], inner.outputs, nodes=[inner], name=f"{name}, {kind}")
        for key, inner, kind in (
            ("then_branch", dense, "dense"),
            ("else_branch", sparse, "by kernel"),
        )
    }
    switch = ir.Node(
        "",
        "If",
        [condition],
        [ir.AttrGraph(key, branch) for key, branch in branches.items()],
        outputs=[_like(value) for value in node.outputs],
        name=f"{name} (by size)",
    )
    for branch in branches.values():
        for value in branch.outputs:
            # Names are unique in a model, branches included.
            value.name = f"{value.name} ({branch.name})"
    _replace(graph, node, switch)


def _unswitch(switch: ir.Node) -> None:
    graph, inner = switch.graph, _kernel_node(switch)
    assert isinstance(graph, ir.Graph)
    node = _copied(inner, inner.domain, inner.name or "")
    # The If has the names that readers know.
    for value, outer in zip(node.outputs, switch.outputs, strict=True):
        value.name = outer.name
    for branch in [attribute.as_graph() for attribute in switch.attributes.values()]:
        branch.outputs.clear()
        branch.remove(list(branch), safe=True)  # They are readers no more.
    _replace(graph, switch, node)


def _copied(node: ir.Node, domain: str, name: str) -> ir.Node:
    return ir.Node(
        domain,
        node.op_type,
        node.inputs,
        node.attributes.values(),
        overload=node.overload,
        outputs=[_like(value) for value in node.outputs],
        name=name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )


def _like(value: ir.Value) -> ir.Value:
    return ir.Value(
        name=value.name,
        shape=value.shape,
        type=value.type,
        doc_string=value.doc_string,
        metadata_props=dict(value.metadata_props),
    )


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    graph.insert_after(old, new)
    for before, after in zip(old.outputs, new.outputs, strict=True):
        # Readers and outputs move over before the old node goes, or it could not be removed.
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)


class _Conditions:
    """Computes conditions, each value of them once: values are known by what they mean."""

    def __init__(self, model: ir.Model) -> None:
        self.first = model.graph[0]
        self._axes = _axes(model)
        self._values: dict[str, ir.Value] = {}
        self.nodes: list[ir.Node] = []

    def of(self, rule: NodeRule) -> ir.Value:
        """Return a bool without axes: the node belongs to `moh.dense`."""
        # [(seq, 64, dense), (seq, 512, kernel)], otherwise dense: built from the last range
        # forwards, as `dense if seq<=64, else (kernel if seq<=512, else dense)`.
        is_dense: ir.Value | None = None
        text = rule.otherwise
        # From the last range to the first: each one decides before what was built so far.
        for size, at_most, domain in reversed(rule.ranges):
            text = f"{domain} if {size}<={at_most}, else {text}"
            first, *others = size.split("*")
            value, product = self._dim(first), first
            for name in others:
                # A product of dimensions, `batch*seq`, one factor after the other.
                product = f"{product}*{name}"
                value = self._value(product, "Mul", [value, self._dim(name)])
            bound = [value, self._number(at_most)]
            holds = self._value(f"{size}<={at_most}", "LessOrEqual", bound)
            is_dense = self._either(text, holds, is_dense, dense_if_holds=domain == DENSE_DOMAIN)
        assert is_dense is not None
        condition = self._value(text, "Squeeze", [is_dense])
        condition.type, condition.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
        return condition

    def _either(
        self, text: str, holds: ir.Value, otherwise: ir.Value | None, *, dense_if_holds: bool
    ) -> ir.Value:
        """Runtimes have no Where for bools. Of the last range, `otherwise` is the other domain."""
        if not dense_if_holds:
            holds = self._value(f"not {holds.name}", "Not", [holds])
        if otherwise is None:
            return holds
        # dense if it holds: holds or otherwise; kernel if it holds: not holds and otherwise.
        return self._value(f"[{text}]", "Or" if dense_if_holds else "And", [holds, otherwise])

    def _dim(self, name: str) -> ir.Value:
        """Return a dimension [1]: the size of an input's axis, solved for the dimension."""
        if name not in self._axes:
            raise PackageError(f"model.onnx has no input with the dimension '{name}'.")
        # An axis may hold `2*past + 1`: the dimension is what solves that.
        source, axis, expr = self._axes[name]
        size = self._value(str(expr), "Shape", [source], start=axis, end=axis + 1)
        # The axis is multiplier * dimension + offset.
        if expr.offset:
            less = self._number(expr.offset)
            size = self._value(f"({expr})-({expr.offset})", "Sub", [size, less])
        if expr.multiplier != 1:
            size = self._value(name, "Div", [size, self._number(expr.multiplier)])
        return size

    def _number(self, number: int) -> ir.Value:
        return self._value(f"[{number}]", "Constant", [], value_ints=[number])

    def _value(
        self, meaning: str, op: str, inputs: Sequence[ir.Value], **attributes: int | list[int]
    ) -> ir.Value:
        # The meaning is also the name: readers of a model can tell what a condition asks.
        if meaning not in self._values:
            value = self._values[meaning] = ir.Value(name=f"{CONDITION_PREFIX}{meaning}")
            self.nodes.append(ir.node(op, inputs, attributes, outputs=[value], name=value.name))
        return self._values[meaning]


def _axes(model: ir.Model) -> dict[str, tuple[ir.Value, int, DimExpr]]:
    """Return for each dimension an input's axis that tells it: rather `past` than `past+1`."""
    found: dict[str, tuple[ir.Value, int, DimExpr]] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, int) or dim.value is None:
                continue
            try:
                expr = DimExpr.parse(dim.value, place=f"input '{value.name}'")
            except ConfigError:
                continue  # A product of dimensions, say: it tells none of them.
            if expr.name not in found or (expr.is_plain and not found[expr.name][2].is_plain):
                found[expr.name] = (value, axis, expr)
    return found
