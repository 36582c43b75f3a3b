"""An ONNX graph as a torch module: its forward computes one node after the other."""

import base64
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import traceback

import moh_deploy.frontend.load.onnx_graph.operators  # noqa: F401  fills the tables
from moh_deploy.errors import CheckpointError, ExportError, MoHDeployError
from moh_deploy.frontend.fx.arrays import to_torch
from moh_deploy.frontend.load.onnx_graph import node_call
from moh_deploy.frontend.load.onnx_graph.node_call import Graph, Node
from moh_deploy.frontend.torch_ops.opaque import OPAQUE

# Under this key of a traced node's `custom` metadata stands where its ONNX node was exported from.
SCOPE = "onnx_scope"


class OnnxModule(nn.Module):
    """Computes a graph with torch. Initializers are its parameters and buffers, under their names.

    Args:
        graph: Operators that the table does not have are computed by ONNX Runtime, and stay.
        opsets: Domain to version.

    Raises:
        CheckpointError: A weight is of a type that torch lacks.
    """

    def __init__(self, graph: Graph, opsets: Mapping[str, int]) -> None:
        super().__init__()
        self._graph = graph
        self._opsets = dict(opsets)
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._numbers: dict[str, np.ndarray] = {}
        self.at: Node | None = None
        self._store(graph)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the graph's outputs, in order."""
        values: dict[str, node_call.NodeValue] = dict(zip(self._graph.inputs, inputs, strict=True))
        found = self._compute(self._graph, values)
        # An output may be an input, or a size.
        return tuple(node_call.as_tensor(value) for value in found)

    def _compute(
        self, graph: Graph, values: dict[str, node_call.NodeValue]
    ) -> list[node_call.NodeValue]:
        for node in graph.nodes:
            self.at = node
            with traceback.annotate({SCOPE: node.scope}):
                results = self._run(node, values)
            named = zip(node.outputs, results, strict=False)
            values.update({name: value for name, value in named if name and value is not None})
        self.at = None
        return [self._read(name, values) for name in graph.outputs]

    def _run(
        self, node: Node, values: dict[str, node_call.NodeValue]
    ) -> list[node_call.NodeValue | None]:
        given = tuple(self._read(name, values) if name else None for name in node.inputs)
        if node.bodies:
            condition = given[0]
            number = condition.flat()[0] if isinstance(condition, node_call.Known) else None
            if not isinstance(number, bool):
                raise ExportError(
                    f"{node.place} chooses between two graphs by a value that is known only when"
                    " the model runs; one traced program cannot hold both.",
                    hint="Export the original model again, without that branch.",
                )
            # A body sees the values around it.
            body = node.bodies["then_branch" if number else "else_branch"]
            return list(self._compute(body, dict(values)))
        domain = node_call.known_domain(node.domain)
        call = node_call.NodeCall(node, given, self._opsets.get(node.domain, 1))
        result: node_call.Result | None = None
        if given and all(
            isinstance(value, node_call.Known) for value in given if value is not None
        ):
            on_numbers = node_call.ON_NUMBERS.get((domain, node.op_type))
            result = None if on_numbers is None else on_numbers(call)
        if result is None:
            result = node_call.ONNX_OPERATORS.get((domain, node.op_type), computed_by_runtime)(call)
        return [result] if isinstance(result, (torch.Tensor, node_call.Known)) else list(result)

    def _read(self, name: str, values: Mapping[str, node_call.NodeValue]) -> node_call.NodeValue:
        if name in values:
            return values[name]
        owner, attribute = self._places[name]
        # Asked for each time: torch.export puts fakes in the place of weights.
        tensor: torch.Tensor = getattr(owner, attribute)
        numbers = self._numbers.get(name)
        return tensor if numbers is None else node_call.Known(numbers, tensor.dtype, tensor)

    def _store(self, graph: Graph) -> None:
        for name, weight in graph.weights.items():
            array = weight.numpy()
            try:
                tensor = to_torch(array)
            except TypeError as error:
                raise CheckpointError(
                    f"weight '{name}' is {weight.dtype.name}, which torch has no tensors of."
                ) from error
            self._places[name] = _register(self, name, tensor)
            if array.size <= node_call.MOST_NUMBERS:
                self._numbers[name] = node_call.objects(tensor.flatten().tolist()).reshape(
                    array.shape
                )
        for node in graph.nodes:
            for body in node.bodies.values():
                self._store(body)


def _register(root: nn.Module, name: str, tensor: torch.Tensor) -> tuple[nn.Module, str]:
    """Put a weight where its name says: `layers.0.weight` into modules `layers` and `0`.

    A name without a dot goes into `constants`: exporters call what they fold `val_7`, and what is
    written later would get the same name from torch.onnx.

    Returns:
        The module that has it, and the name of the attribute.
    """
    *path, last = name.split(".") if "." in name else ("constants", name)
    owner = root
    for part in path:
        child = owner._modules.get(part)
        if child is None and (not part or hasattr(owner, part)):
            owner, last = root, name.replace(".", "_")  # `a..b`, or a method of modules
            break
        if child is None:
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    while not last or hasattr(owner, last):
        last = f"{last}_"
    if tensor.is_floating_point():
        owner.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    else:
        owner.register_buffer(last, tensor)
    return owner, last


def name_scopes(program: ExportedProgram) -> None:
    """Say of each node of a traced graph which module it was in when the file was exported.

    Layers are named so. In torch's own words of it: the stack of modules.
    """
    for node in program.graph.nodes:
        scope = (node.meta.get("custom") or {}).get(SCOPE)
        if scope is not None:
            node.meta["nn_module_stack"] = {"": ("", "OnnxModule"), "scope": (".".join(scope), "")}


# Nodes of operators that nothing here knows: ONNX Runtime computes them, and they stay.


def computed_by_runtime(call: node_call.NodeCall) -> node_call.Result:
    """Compute a node of an operator that the table does not have.

    Raises:
        ExportError: What it returns has a shape that cannot be told.
    """
    given = [node_call.as_tensor(value) for value in call.values if value is not None]
    # The same input twice is one input of the node alone.
    names = [name for name in call.node.inputs if name]
    if not given or len(set(names)) < len(names):
        raise call.refused("has no inputs, or one twice; its operator is not known")
    encoded = base64.b64encode(call.node.alone(call.opset)).decode()
    try:
        places = range(sum(map(bool, call.node.outputs)))
        made = iter([OPAQUE(given, encoded, place) for place in places])
    except MoHDeployError as error:
        raise ExportError(f"{call.node.place}: {error.message}.", hint=error.hint) from error
    return [next(made) if name else None for name in call.node.outputs]
