"""Give inputs, outputs and dynamic dimensions the user's names."""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import onnx_ir as ir

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names
from moh_deploy.ops.op_names import AttentionOp
from moh_deploy.ops.routers import WEIGHING

# Let readers find each layer's gates without making them outputs of the model.

# Take a name from a weight, so that another value can have it: names of values are unique.


def free_name(graph: ir.Graph, name: str) -> bool:
    """Rename the weight of this name, if there is one: torch.onnx calls weights by their paths."""
    weight = graph.initializers.get(name)
    if weight is not None:
        weight.name = f"{name}.inner"
    return weight is not None


ATTENTION_OPS = get_args(AttentionOp)
_VIEWS = ("Reshape", "Transpose", "Identity")


@dataclass(frozen=True)
class TranslatedLayer:
    """One MoH layer of a model that torch.onnx has just translated."""

    path: str  # module path
    replaced: bool  # it has a node of ATTENTION_OPS
    viewed: bool  # an output, behind those of all gates, holds what its attention computes


@dataclass(frozen=True)
class LayerNames:
    """Names of one layer in the model."""

    layer: str  # the layer itself: its module path, `attn#2` where that runs for the second time
    gates: str  # value that holds the gates [B, S, H]
    # The node of the layer's attention; None where it stays ordinary operators.
    node: str | None = None
    # The MoHQueryProjection that it reads, or None.
    query_projection: str | None = None
    # The MoHOutputProjection that reads it, or None.
    output_projection: str | None = None
    router: str | None = None  # the MoHRouter that makes the gates; None where other operators do
    # Value that holds the gated heads; None where `node` makes them, or none does.
    attention: str | None = None

    @property
    def nodes(self) -> frozenset[str]:
        """Names of the layer's nodes."""
        named = (self.node, self.query_projection, self.output_projection, self.router)
        return frozenset(name for name in named if name is not None)


def keep_gates(model: ir.Model, translated: Sequence[TranslatedLayer]) -> tuple[LayerNames, ...]:
    """Take the gates, and the attentions behind them, off the end of the model's outputs, and name
    them and the nodes of router and attention after their layers.

    Args:
        translated: The layers, in the order in which they run.

    Raises:
        ExportError: Fewer attentions than layers are left.
    """
    # Outputs are [the model's, gates of each layer, views of those that have one]. Attention nodes
    # stand in the graph in the order of their layers, so they are handed out one after the other.
    graph = model.graph
    first = len(graph.outputs) - sum(1 + layer.viewed for layer in translated)
    gates = list(graph.outputs[first : first + len(translated)])
    views = iter(list(graph.outputs[first + len(translated) :]))
    names = layer_names([layer.path for layer in translated])
    found = [node for node in graph if node.op_type in ATTENTION_OPS]
    count = sum(layer.replaced for layer in translated)
    if len(found) < count:
        raise ExportError(
            f"{count} layers have {len(found)} attentions in what torch.onnx has made: it merges"
            " modules of equal weights that read the same.",
            hint="Run one of them where both compute the same, or give them weights of their own.",
        )
    attention = iter(found)
    routers: set[ir.Node] = set()
    layers: list[LayerNames] = []
    for name, value, translated_layer in zip(names, gates, translated, strict=True):
        view = next(views) if translated_layer.viewed else None
        for named, kind in ((value, "gates"), (view, "attention")):
            if named is not None:
                free_name(graph, f"{name}.{kind}")  # a layer's parameter may be called so, too
                named.name = f"{name}.{kind}"
        node = next(attention) if translated_layer.replaced else None
        layers.append(
            LayerNames(
                layer=name,
                gates=f"{name}.gates",
                node=_named(node, name),
                query_projection=_named(_query_projection(node), name),
                output_projection=_named(_output_projection(node), name),
                router=_named(_router(value, routers), name),
                attention=None if view is None else view.name,
            )
        )
    # Values stay in the graph under their names, where sessions can fetch them.
    del graph.outputs[first:]
    return tuple(layers)


def layer_names(paths: Sequence[str]) -> list[str]:
    """Return unique names: `attn`, and `attn#2` where that layer runs for the second time."""
    seen: dict[str, int] = {}
    names: list[str] = []
    for path in paths:
        base = path or "model"
        seen[base] = seen.get(base, 0) + 1
        # A module that runs twice is two layers with gates of their own.
        names.append(base if seen[base] == 1 else f"{base}#{seen[base]}")
    return names


def _named(node: ir.Node | None, layer: str) -> str | None:
    if node is not None:
        node.name = f"{layer}.{node.op_type}"
    return None if node is None else node.name


def _query_projection(attention: ir.Node | None) -> ir.Node | None:
    # Queries are the first input of both attention ops.
    query = None if attention is None else attention.inputs[0]
    maker = None if query is None else query.producer()
    return maker if maker is not None and maker.op_type == op_names.QUERY_PROJECTION else None


def _output_projection(node: ir.Node | None) -> ir.Node | None:
    """Return the projection that alone reads an attention, perhaps rearranged."""
    while node is not None and node.op_type != op_names.OUTPUT_PROJECTION:
        readers = node.outputs[0].consumers()
        follows = len(readers) == 1 and readers[0].op_type in (op_names.OUTPUT_PROJECTION, *_VIEWS)
        node = readers[0] if follows else None
    return node


def _router(gates: ir.Value, named: set[ir.Node]) -> ir.Node | None:
    """Return the router that makes the gates, unless an earlier layer has it."""
    # Backwards through what weighs, moves or casts gates: they always are its first input.
    node = gates.producer()
    while node is not None and node.op_type in (*_VIEWS, *WEIGHING, "Cast"):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    # A shared router is named after the first layer that it serves.
    if node is None or node.op_type != op_names.ROUTER or node in named:
        return None
    named.add(node)
    return node


# Give outputs the dtypes that they have in the program.
#
# torch.onnx computes a sum of float16 in float32, which readers within the graph see rounded again,
# but not the graph's outputs.


def restore_output_types(model: ir.Model, dtypes: Sequence[ir.DataType]) -> bool:
    """Round outputs that are of another dtype, by the Cast that readers have where there is one.

    Args:
        dtypes: Of each output in the program.
    """
    outputs = list(model.graph.outputs)
    # An output without a dtype is not known to be wrong.
    wrong = [i for i, dtype in enumerate(dtypes) if outputs[i].dtype not in (None, dtype)]
    for index in wrong:
        value, dtype = outputs[index], dtypes[index]
        # Where readers see it rounded, their own Cast holds what the program computed.
        casts = (node for node in value.consumers() if node.op_type == "Cast")
        cast = next((node for node in casts if node.attributes["to"].as_int() == dtype), None)
        if cast is None:
            cast = ir.node("Cast", [value], {"to": dtype})
            cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
            cast.outputs[0].name = f"{value.name}_{dtype.name.lower()}"
            model.graph.append(cast)
        model.graph.outputs[index] = cast.outputs[0]
    return bool(wrong)


# Name every node after the module it computes for.

# Where the exporter writes the modules around a node, outermost first, and the node's own name.
_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(model: ir.Model, *, keep: frozenset[str]) -> bool:
    """Name nodes `blocks.0.mlp.MatMul`, `blocks.0.mlp.MatMul#2` and so on.

    A node without metadata of the exporter keeps its name.

    Args:
        keep: Names that stay: those of the layers' nodes.
    """
    seen, before = Counter(keep), [node.name for node in model.graph]
    for node in model.graph:
        if node.name in keep or _SCOPES not in node.metadata_props:
            continue
        *modules, _ = ast.literal_eval(node.metadata_props[_SCOPES])
        name = f"{modules[-1] if modules and modules[-1] else 'model'}.{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return [node.name for node in model.graph] != before


def name_interface(
    model: ir.Model, *, dims: Sequence[Mapping[int, DimExpr]], outputs: Sequence[str]
) -> bool:
    """Rename symbols of dynamic dimensions and the outputs.

    Args:
        dims: For each input, axis to dimension.
        outputs: A name for each output.
    """

    def described() -> list[str]:
        values = (*_values(model.graph), *model.graph.outputs)
        return [f"{value.name} {value.shape}" for value in values]

    before = described()  # compared at the end, which is simpler than watching each change
    # torch.onnx calls dimensions s77 and outputs after nodes. A symbol that is an input's dimension
    # gets its name everywhere, also in expressions such as `s77 + 1`.
    symbols = _symbols(model, dims)
    # All values, not just inputs: shapes of later ones are expressions of the same symbols.
    for value in _values(model.graph):
        if value.shape is not None:
            dims_now = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            # Word by word: shapes are expressions such as `s77 + 1`.
            value.shape = ir.Shape(
                _WORD.sub(lambda word: symbols.get(word[0], word[0]), dim)
                if isinstance(dim, str)
                else dim
                for dim in dims_now
            )
    for value, axes in zip(model.graph.inputs, dims, strict=True):
        assert value.shape is not None
        # Inputs get the expression that was asked for, `past+1` say, not what the exporter made.
        value.shape = ir.Shape(
            [str(axes[axis]) if axis in axes else dim for axis, dim in enumerate(value.shape)]
        )
    _name_outputs(model.graph, outputs)
    return described() != before


_WORD = re.compile(r"[A-Za-z_]\w*")


def _symbols(model: ir.Model, dims: Sequence[Mapping[int, DimExpr]]) -> dict[str, str]:
    """Return the exporter's symbol of each dimension, such as `s77`, to its name."""
    symbols: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, dims, strict=True):
        assert value.shape is not None
        for axis, expr in axes.items():
            size = getattr(value.shape[axis], "value", None)
            if not isinstance(size, str):
                continue
            words = _WORD.findall(size)
            # `2*s77` tells the symbol of batch where `2*batch` was asked for; s77 alone does not.
            if len(words) == 1 and str(replace(expr, name=words[0])) == size.replace(" ", ""):
                symbols[words[0]] = expr.name
    return symbols


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
        # What passes through, a constant, or the same value twice needs a value of its own.
        if value.is_graph_input() or value.is_initializer() or value in graph.outputs[:index]:
            node = ir.Node("", "Identity", [value])
            graph.append(node)
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.outputs[index] = value = node.outputs[0]
        free_name(graph, name)
        value.name = name
