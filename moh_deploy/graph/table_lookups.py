"""Find the tables that a graph looks rows up in, and how it computes the indices.

A table of embeddings is read at token ids, a table of positions at positions, which a graph makes
of sizes (`Range`, the length of a cache) or of a mask (`CumSum`). ONNX takes index -1 for the last
row, where `torch.nn.Embedding` raises an error; and what runtimes do beyond the last row differs:
ONNX Runtime fails at an inner node, OpenVINO returns zeros.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.package.graph_nodes import SIZES, makers_of

# Each element of what they return is one of their first input: of a Concat, of any input.
_KEEP_VALUES = frozenset(
    ("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze")
    + ("Tile", "Transpose", "Unsqueeze")
)
# What computes positions of sizes, masks and ids.
_ARITHMETIC = _KEEP_VALUES | frozenset(
    ("Abs", "Add", "And", "Clip", "ConstantOfShape", "CumSum", "Div", "Equal", "Gather", "Greater")
    + ("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or")
    + ("Range", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Sub", "Where")
)
_SIZES = frozenset(("Shape", "Size"))
_WHOLE_NUMBERS = frozenset(
    (TensorProto.INT64, TensorProto.INT32, TensorProto.INT16, TensorProto.INT8)
    + (TensorProto.UINT8, TensorProto.BOOL)
)
_KEEP_SHAPE = frozenset(("Cast", "DequantizeLinear", "Identity", "Transpose"))


@dataclass(frozen=True)
class TableLookup:
    """A table, and the indices at which the graph reads its rows."""

    table: str  # name of the weight
    rows: int  # how many it has
    least: int  # the smallest index: 0, or -rows where negative ones count from the end
    indices: str  # name of the value that has them
    # The inputs whose elements they are made of; none where sizes alone tell.
    inputs: frozenset[str]
    origin: str | None  # the input whose very elements they are; None if they are computed


@dataclass(frozen=True)
class _Source:
    """What a value is computed of: elements of inputs, and sizes; see `TableLookup`."""

    inputs: frozenset[str] = frozenset()
    has_sizes: bool = False
    origin: str | None = None


def table_lookups(graph: onnx.GraphProto, *, from_the_end: bool) -> tuple[TableLookup, ...]:
    """Return the lookups whose indices follow from whole numbers and sizes of the inputs alone.

    Args:
        from_the_end: Negative indices of Gather count from the end, as ONNX has it. PyTorch's
            embedding, index_select and gather, which become Gather and GatherElements, refuse them.
            What takes them in PyTorch, `table[ids]`, becomes GatherND.
    """
    sources, shapes, makers = _sources(graph), _shapes(graph), makers_of(graph.node)
    found = []
    for node in graph.node:
        if node.op_type not in ("Gather", "GatherElements", "GatherND"):
            continue
        source = sources.get(node.input[1])
        rows = _rows(node, shapes)
        if source is None or rows is None or not (source.inputs or source.has_sizes):
            continue
        least = -rows if from_the_end or node.op_type == "GatherND" else 0
        table = node.input[0]
        # The weight that it is stored in may be cast or dequantised.
        while table in makers and makers[table].op_type in _KEEP_SHAPE:
            table = makers[table].input[0]
        found.append(TableLookup(table, rows, least, node.input[1], source.inputs, source.origin))
    return tuple(found)


def index_model(model: onnx.ModelProto, lookups: Iterable[TableLookup]) -> onnx.ModelProto:
    """Return a model that computes the indices of lookups.

    Its inputs are inputs of the graph, and the outputs of operators of `size_readers`.
    """
    graph = model.graph
    wanted = dict.fromkeys(lookup.indices for lookup in lookups)
    needed, nodes = set(wanted), list[onnx.NodeProto]()
    for node in reversed(graph.node):
        if node.op_type not in _SIZES and needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    given = _inputs(graph) | {
        name: helper.make_tensor_value_info(name, TensorProto.INT64, None)
        for name in size_readers(graph)
    }
    weights = [weight for weight in graph.initializer if weight.name in needed]
    inputs = [info for name, info in given.items() if name in needed]
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    own = helper.make_graph(nodes, "indices", inputs, outputs, weights)
    return helper.make_model(own, opset_imports=model.opset_import, ir_version=model.ir_version)


def size_readers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the outputs of operators that read sizes of inputs, and these operators."""
    inputs = _inputs(graph)
    return {
        node.output[0]: node
        for node in graph.node
        if node.op_type in _SIZES and node.input[0] in inputs
    }


def _inputs(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    weights = {weight.name for weight in graph.initializer}
    return {info.name: info for info in graph.input if info.name not in weights}


def _sources(graph: onnx.GraphProto) -> dict[str, _Source]:
    """Return what each value is made of, of those that `_ARITHMETIC` makes."""

    def has_data(weight: onnx.TensorProto) -> bool:
        # Large and external weights lack them here (see `load_without_weights`).
        numbers = (weight.int64_data, weight.int32_data, weight.float_data, weight.double_data)
        return weight.HasField("raw_data") or any(map(len, numbers)) or 0 in weight.dims

    sources = {
        name: _Source(frozenset((name,)), origin=name)
        for name, info in _inputs(graph).items()
        if info.type.tensor_type.elem_type in _WHOLE_NUMBERS
    }
    sources |= {weight.name: _Source() for weight in graph.initializer if has_data(weight)}
    sources |= dict.fromkeys(size_readers(graph), _Source(has_sizes=True))
    for node in graph.node:
        read = [name for name in node.input if name]
        if node.op_type == "Constant":
            sources[node.output[0]] = _Source()
        elif node.op_type in _ARITHMETIC and all(name in sources for name in read):
            parts = [sources[name] for name in read]
            moved = parts if node.op_type == "Concat" else parts[:1]
            origins = {part.origin for part in moved if part.origin is not None}
            kept = node.op_type in _KEEP_VALUES and len(origins) == 1
            made = _Source(
                frozenset().union(*(part.inputs for part in parts)),
                any(part.has_sizes for part in parts),
                origins.pop() if kept else None,
            )
            sources.update(dict.fromkeys(node.output, made))
    return sources


def _rows(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int | None]]) -> int | None:
    """Return the size of the axis that a node picks from; None where it is not known."""
    shape = shapes.get(node.input[0], ())
    if node.op_type == "GatherND":
        # An index of several axes, or of samples one by one, reads no rows of a table.
        one_axis = list(shapes.get(node.input[1], ()))[-1:] == [1]
        return shape[0] if shape and one_axis and not _attribute(node, "batch_dims") else None
    axis = _attribute(node, "axis")
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((field.i for field in node.attribute if field.name == name), 0)


def _shapes(graph: onnx.GraphProto) -> dict[str, Sequence[int | None]]:
    shapes: dict[str, Sequence[int | None]] = {
        value.name: [
            size.dim_value if size.HasField("dim_value") else None
            for size in value.type.tensor_type.shape.dim
        ]
        for value in graph.value_info
    }
    shapes |= {name: tensor.dims for name, tensor in _constants(graph).items()}
    for node in graph.node:
        if node.op_type == "Constant":
            shapes.setdefault(node.output[0], ())
        # Tables of small integers have no shape written down behind them.
        elif node.op_type in _KEEP_SHAPE - {"Transpose"} and node.input[0] in shapes:
            shapes.setdefault(node.output[0], shapes[node.input[0]])
    return shapes


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return stored numbers by name: exporters write initializers or Constant nodes."""
    constants = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                constants[node.output[0]] = attribute.t
    return constants


# Find the operators that ask whether inputs have one certain size.

# What computes sizes of sizes: integers that hang on shapes alone.
_OF_SIZES = (
    *("Add", "Cast", "Concat", "Constant", "Div", "Flatten", "Gather", "Identity", "Max", "Min"),
    *("Mod", "Mul", "Neg", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze"),
)


@dataclass(frozen=True)
class SizeQuestion:
    """An Equal of sizes of the inputs and constants."""

    value: str  # what it makes
    node: onnx.NodeProto  # the node
    sizes: tuple[int, ...]  # the constants


def size_questions(graph: onnx.GraphProto) -> Iterator[SizeQuestion]:
    """Yield the nodes of the main graph that are asked of nothing but sizes."""
    makers, constants = makers_of(graph.node), _constants(graph)
    # Shape(x) -> Gather -> Equal 1, say.
    for node in graph.node:
        if node.op_type == "Equal" and all(
            _is_size(name, makers, constants) for name in node.input
        ):
            known = [constants[name] for name in node.input if name in constants]
            numbers = [np.ravel(numpy_helper.to_array(tensor)).tolist() for tensor in known]
            sizes = tuple(int(number) for group in numbers for number in group if number > 0)
            # An Equal of constants alone has one answer at every size.
            if sizes and len(known) < len(node.input):
                yield SizeQuestion(node.output[0], node, sizes)


def _is_size(
    value: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> bool:
    if value in constants:
        return True
    node = makers.get(value)
    if node is None or node.op_type not in (*SIZES, *_OF_SIZES):
        return False
    return node.op_type in SIZES or all(_is_size(name, makers, constants) for name in node.input)
