"""Single nodes of a package as models, with the values that reach them in the whole model."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from moh_deploy.ops import OPS
from moh_deploy.ops.onnx_schema import to_type_proto
from moh_deploy.ops.spec import TensorType
from moh_deploy.package import LayerInfo, OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class NodeModel:
    """A model of one node; weights stay constants.

    Attributes:
        feeds: Its inputs.
        gates: Which of them are the gates.
        on_kernel: Whether a kernel runs the node in the package, as read from a session.
    """

    name: str
    content: bytes
    feeds: dict[str, Array]
    gates: str
    on_kernel: bool


def layer_nodes(layer: LayerInfo) -> list[str]:
    """Return the names of a layer's nodes: attention, and projections where they are sparse."""
    names = (layer.query_projection, layer.node, layer.output_projection)
    return [name for name in names if name is not None]


def split_layers(
    package: OnnxPackage, inputs: Mapping[str, Array], kernel: KernelUse
) -> tuple[dict[str, NodeModel], dict[str, Array]]:
    """Run a package once, and cut the nodes of its MoH layers out.

    Returns:
        Name to each of the nodes, and the gates [B, S, H] of each layer by their name.
    """
    model = onnx.load(package.model_path)
    layers = package.manifest.layers
    names = {name for layer in layers for name in layer_nodes(layer)}
    nodes = [node for node in model.graph.node if node.name in names]
    constants = {item.name: item for item in model.graph.initializer}
    read = {name for node in nodes for name in node.input if name} - constants.keys()
    wanted = read - inputs.keys() | set(package.gate_names)
    runner = open_runner(
        package,
        Variant(
            kernels="off" if kernel.library is None else "auto",
            library=kernel.library,
            threads=1,
            extra_outputs=tuple(sorted(wanted)),
        ),
    )
    values = {**inputs, **runner.run(inputs)}
    on_kernel = {name for name, impl in runner.describe().layer_impl.items() if impl == "kernel"}
    cut = {
        node.name: _cut(model, node, constants, values, on_kernel=node.name in on_kernel)
        for node in nodes
    }
    return cut, {name: values[name] for name in package.gate_names}


def _cut(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    values: Mapping[str, Array],
    *,
    on_kernel: bool,
) -> NodeModel:
    read = dict.fromkeys(name for name in node.input if name)
    feeds = {name: values[name] for name in read if name not in constants}
    graph = onnx.helper.make_graph(
        [node],
        node.name,
        [_value_info(name, array) for name, array in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [constants[name] for name in read if name in constants],
    )
    key = (node.domain, node.op_type, node.overload)
    bodies = [
        function
        for function in model.functions
        if (function.domain, function.name, function.overload) == key
    ]
    cut = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, functions=bodies, ir_version=model.ir_version
    )
    gates = [item.name for item in OPS[node.op_type].inputs].index("gates")
    return NodeModel(node.name, cut.SerializeToString(), feeds, node.input[gates], on_kernel)


def _value_info(name: str, array: Array) -> onnx.ValueInfoProto:
    # Sizes are left open, as they are in the package.
    type_ = TensorType(array.dtype.name, tuple(f"{name}_{axis}" for axis in range(array.ndim)))
    return onnx.helper.make_value_info(name, to_type_proto(type_))
