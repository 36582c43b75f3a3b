"""Modules and functions as programs and graphs, for tests of what reads and changes them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from moh_deploy.frontend.fx.builder import GraphBuilder
from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.load.load import in_eval_mode
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.record import _flat_inputs
from moh_deploy.frontend.trace import trace


def loaded(module: nn.Module) -> LoadedModel:
    """The module as loading would hand it over."""
    return LoadedModel(in_eval_mode(module), None, "in_memory", None)


def traced(module: nn.Module, inputs: Sequence[ModelInput]) -> ExportedProgram:
    """The normalized program of a module: what recognition reads."""
    return normalize(trace(loaded(module), inputs))


def plain_trace(model: nn.Module | Callable[..., object], *arguments: Tensor) -> ExportedProgram:
    """The program of a module or function at fixed sizes, as torch leaves it: that is quick."""
    module = model if isinstance(model, nn.Module) else _Function(model)
    with torch.no_grad():
        return torch.export.export(module.eval(), arguments)


class _Function(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> object:
        return self.function(*arguments)


class Values(Interpreter):
    """Runs a program and keeps the value of every node."""

    def __init__(self, program: ExportedProgram, *arguments: Tensor) -> None:
        super().__init__(program.graph_module)
        self.of: dict[Node, object] = {}
        with torch.no_grad():
            self.run(*_flat_inputs(program, arguments))

    def run_node(self, n: Node) -> object:
        self.of[n] = super().run_node(n)
        return self.of[n]


def nodes(program: ExportedProgram, name: str) -> list[Node]:
    """All nodes of an operator."""
    return [node for node in program.graph.nodes if op(node) == name]


class Sheet:
    """A graph to write on by hand: placeholders with fake values, and calls.

    Args:
        values: The real inputs that `run` feeds.
        dynamic: Sizes that are symbolic, wherever they occur.
    """

    def __init__(self, *values: Tensor, dynamic: Sequence[int] = ()) -> None:
        self.graph = Graph()
        self.values = values
        mode = FakeTensorMode(shape_env=ShapeEnv())
        self.inputs = []
        for position, value in enumerate(values):
            node = self.graph.placeholder(f"x{position}")
            kinds = [
                DimDynamic.DUCK if size in dynamic else DimDynamic.STATIC for size in value.shape
            ]
            node.meta["val"] = mode.from_tensor(
                value, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds)
            )
            self.inputs.append(node)
        self._end = self.graph.output(())
        self.builder = GraphBuilder(self.graph, self._end)

    def call(self, target: Callable[..., object], *args: object) -> Node:
        return self.builder.call(target, *args)

    def run(self, node: Node, *values: Tensor) -> Tensor:
        """The node's value for other inputs, or for those of the sheet."""
        self._end.args = (node,)
        return GraphModule(nn.Module(), self.graph)(*(values or self.values))
