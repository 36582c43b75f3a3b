"""Give inputs, outputs and dynamic dimensions the user's names."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from moh_deploy.config.dims import DimExpr
from moh_deploy.graph.keep_gates import free_name

# Name every node after the module it computes for.

# Where the exporter writes the modules around a node, outermost first, and the node's own name.
_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(model: ir.Model, *, keep: frozenset[str]) -> bool:
    """Name nodes `blocks.0.mlp.MatMul`, `blocks.0.mlp.MatMul#2` and so on.

    A node of which the exporter says nothing keeps its name.

    Args:
        keep: Names that stay: those of the layers' nodes.
    """
    seen, before = Counter(keep), [node.name for node in model.graph]
    for node in model.graph:
        if node.name in keep or _SCOPES not in node.metadata_props:
            continue
        name = f"{_module_path(node)}.{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return [node.name for node in model.graph] != before


def _module_path(node: ir.Node) -> str:
    """`model` for the model itself."""
    *modules, _ = ast.literal_eval(node.metadata_props[_SCOPES])
    return (modules[-1] if modules else "") or "model"


def name_interface(
    model: ir.Model, *, dims: Sequence[Mapping[int, DimExpr]], outputs: Sequence[str]
) -> bool:
    """Rename symbols of dynamic dimensions and the outputs.

    Args:
        dims: For each input, axis to dimension.
        outputs: A name for each output.
    """
    # Compared at the end, which is simpler than watching each change.
    before = _described(model)
    # torch.onnx calls dimensions s77 and outputs after nodes. A symbol that is an input's dimension
    # gets its name everywhere, also in expressions such as `s77 + 1`.
    symbols = _symbols(model, dims)
    # All values, not just inputs: shapes of later ones are expressions of the same symbols.
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
    for value, axes in zip(model.graph.inputs, dims, strict=True):
        assert value.shape is not None
        # Inputs get the expression that was asked for, `past+1` say, not what the exporter made.
        value.shape = ir.Shape(
            [str(axes[axis]) if axis in axes else dim for axis, dim in enumerate(value.shape)]
        )
    _name_outputs(model.graph, outputs)
    return _described(model) != before


def _described(model: ir.Model) -> list[str]:
    return [
        f"{value.name} {value.shape}" for value in (*_values(model.graph), *model.graph.outputs)
    ]


def _symbols(model: ir.Model, dims: Sequence[Mapping[int, DimExpr]]) -> dict[str, str]:
    """The exporter's symbol of each dimension, such as `s77`, to its name."""
    symbols: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, dims, strict=True):
        assert value.shape is not None
        for axis, expr in axes.items():
            size = getattr(value.shape[axis], "value", None)
            if not isinstance(size, str):
                continue
            words = re.findall(r"[A-Za-z_]\w*", size)
            # `2*s77` tells the symbol of batch where `2*batch` was asked for; s77 alone does not.
            if len(words) == 1 and str(replace(expr, name=words[0])) == size.replace(" ", ""):
                symbols[words[0]] = expr.name
    return symbols


def _renamed(dim: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return None
    # Word by word: shapes are expressions such as `s77 + 1`.
    return re.sub(r"[A-Za-z_]\w*", lambda word: symbols.get(word[0], word[0]), dim.value)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs


def _name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    # An inner value of that name gives way: names of values are unique.
    taken = set(names)
    for value in _values(graph):
        # An inner value may already have the name that the user wants for an output.
        if value.name in taken and value not in graph.outputs:
            value.name = f"{value.name}.inner"
    for index, name in enumerate(names):
        value = graph.outputs[index]
        # What passes through, a constant, or the same value twice.
        if value.is_graph_input() or value.is_initializer() or value in graph.outputs[:index]:
            value = _copied(graph, value)
            graph.outputs[index] = value
        free_name(graph, name)
        value.name = name


def _copied(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """An output needs a value of its own: it cannot be an input or another output as well."""
    node = ir.Node("", "Identity", [value])
    graph.append(node)
    (copy,) = node.outputs
    copy.shape, copy.type = value.shape, value.type
    return copy
