"""Cut the nodes of one layer out as a model of their own, to time them on real inputs.

Attention and projections stand side by side: between them a model may do anything else (norms,
positions), which is not the layer's choice.
"""

from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx_ir as ir

from moh_deploy.ops import OPS, is_moh_op
from moh_deploy.package import LayerInfo, projections
from moh_deploy.system.npz import Array


def fed_names(model: ir.Model, layer: LayerInfo) -> tuple[str, ...]:
    """Return the names of what a layer's nodes read and what is computed in each run."""
    nodes = _nodes(model, layer)
    # Constants stay in the small model: kernels prepare them once.
    return tuple(dict.fromkeys(_name(value) for value in _inputs_of(nodes) if _is_fed(value)))


def layer_model(
    model: ir.Model, layer: LayerInfo, feeds: Sequence[Mapping[str, Array]]
) -> onnx.ModelProto:
    """Return a model of a layer's nodes only, in the domains that they have now.

    Args:
        model: The whole model.
        layer: One that was replaced.
        feeds: The arrays of `fed_names`, one set or more: the model's inputs get their types.
    """
    # Query projection, attention and output projection do not feed each other here: each is fed
    # what it reads in the whole model, and what it makes is an output.
    nodes = _nodes(model, layer)
    own = [ir.serde.serialize_node(node) for node in nodes]
    for node in own:
        # Named anew: what one node of a layer makes, another one may be fed with.
        node.output[:] = [f"{name} (result)" if name else "" for name in node.output]
    # Weights may reach a node by way of others: a Transpose of an initializer, say.
    made_of = [_made_of(value) for value in _inputs_of(nodes) if not _is_fed(value)]
    makers = {maker for found, _ in made_of for maker in found}
    weights = dict.fromkeys(weight for _, sources in made_of for weight in sources)
    graph = onnx.GraphProto(name=layer.path)
    graph.input.extend(_input_info(name, [arrays[name] for arrays in feeds]) for name in feeds[0])
    # Every result is an output, or the runtime would drop the node.
    graph.output.extend(onnx.ValueInfoProto(name=name) for node in own for name in node.output)
    graph.node.extend(ir.serde.serialize_node(node) for node in model.graph if node in makers)
    graph.node.extend(own)
    return _with_weights(model, graph, weights, nodes)


def empty_model(feeds: Sequence[Mapping[str, Array]]) -> onnx.ModelProto:
    """Return a model that takes the same and does nothing but copy the smallest of it.

    A layer of constants takes nothing: then there is a number to return.
    """
    # What a session costs by itself: its time is taken off those of layers.
    smallest = min(feeds[0], key=lambda name: feeds[0][name].size, default=None)
    graph = onnx.GraphProto(name="empty")
    graph.input.extend(_input_info(name, [arrays[name] for arrays in feeds]) for name in feeds[0])
    node = (
        onnx.helper.make_node("Constant", [], ["nothing (result)"], value_float=0.0)
        if smallest is None
        else onnx.helper.make_node("Identity", [smallest], [f"{smallest} (result)"])
    )
    graph.node.append(node)
    graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )


def attention_inputs(model: ir.Model, layer: LayerInfo) -> dict[str, str]:
    """Return `Q`, `gates` and so on to the names of what a layer's attention node reads."""
    for node in model.graph:
        if node.name == layer.node and layer.node is not None:
            formal = OPS[node.op_type].inputs
            return {
                op_input.name: _name(value)
                for op_input, value in zip(formal, node.inputs, strict=False)
                if value is not None
            }
    return {}


def _nodes(model: ir.Model, layer: LayerInfo) -> list[ir.Node]:
    names = {layer.node, *projections(layer)}
    return [node for node in model.graph if node.name in names]


def _inputs_of(nodes: Sequence[ir.Node]) -> list[ir.Value]:
    return [value for node in nodes for value in node.inputs if value is not None]


def _is_fed(value: ir.Value) -> bool:
    """Runtimes compute once what is made of weights, but not what operators of ours make."""
    makers, sources = _made_of(value)
    is_constant = all(source.is_initializer() for source in sources)
    return not is_constant or any(is_moh_op(node.domain, node.op_type) for node in makers)


def _made_of(value: ir.Value) -> tuple[set[ir.Node], list[ir.Value]]:
    """Return the nodes that a value is computed by, and the inputs and weights at their start."""
    # A stack of its own: the way to an input may lead through the whole model.
    pending, nodes, sources = [value], set[ir.Node](), list[ir.Value]()
    while pending:
        read = pending.pop()
        node = read.producer()
        if node is None:
            sources.append(read)
        elif node not in nodes:
            nodes.add(node)
            pending += _inputs_of([node])
    return nodes, sources


def _with_weights(
    model: ir.Model, graph: onnx.GraphProto, weights: Iterable[ir.Value], nodes: Sequence[ir.Node]
) -> onnx.ModelProto:
    """Return a model of a graph, with its weights and the bodies of its nodes."""
    for weight in weights:
        assert weight.const_value is not None
        # Data in another file, too, moves into the small model.
        tensor = ir.Tensor(weight.const_value.numpy(), name=weight.name)
        graph.initializer.append(ir.serde.serialize_tensor(tensor))
    used = {node.op_identifier() for node in nodes}
    functions = [function for key, function in model.functions.items() if key in used]
    return onnx.helper.make_model(
        graph,
        functions=[ir.serde.serialize_function(function) for function in functions],
        opset_imports=[onnx.helper.make_opsetid(*item) for item in model.opset_imports.items()],
        ir_version=model.ir_version,
    )


def _input_info(name: str, arrays: Sequence[Array]) -> onnx.ValueInfoProto:
    """A size that is the same in all sets is fixed."""
    element = ir.DataType.from_numpy(arrays[0].dtype).value
    sizes = [set(axis) for axis in zip(*(array.shape for array in arrays), strict=True)]
    shape = [axis.pop() if len(axis) == 1 else None for axis in sizes]
    return onnx.helper.make_tensor_value_info(name, element, shape)


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


# Cut one node of a custom op out as a model of its own, to be built and timed by itself.


def fed_values(node: ir.Node) -> tuple[ir.Value, ...]:
    """Return what a node reads that is no constant of the model, each once."""
    return tuple(dict.fromkeys(value for value in _inputs_of([node]) if value.const_value is None))


def node_model(model: ir.Model, node: ir.Node) -> ir.Model:
    """Return a model of one node, with its body: it is fed what `fed_values` are.

    Args:
        model: With a function body for the node; values have dtypes and shapes.
    """
    constants = (value for value in _inputs_of([node]) if value.const_value is not None)
    graph = onnx.GraphProto(name=node.name or node.op_type)
    graph.input.extend(map(ir.serde.serialize_value, fed_values(node)))
    graph.output.extend(map(ir.serde.serialize_value, node.outputs))
    graph.node.append(ir.serde.serialize_node(node))
    return ir.from_proto(_with_weights(model, graph, dict.fromkeys(constants), [node]))
