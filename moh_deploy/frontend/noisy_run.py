"""Run the original operators with noise of the size of rounding behind each of them.

What moves in such runs is what rounding can move: another order of summation, another exponential,
another instruction set. (Monte Carlo arithmetic; Parker, "Monte Carlo Arithmetic", UCLA 1997.) The
gates of the original are fed to every layer, since a token that takes another head near a tie would
tell of that tie, and not of rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map


@dataclass(frozen=True)
class NoisyRun:
    """What a run with noise computed.

    Attributes:
        values: Of the nodes that were asked for.
        outputs: The tensors of the program's outputs, in order.
    """

    values: Mapping[Node, torch.Tensor]
    outputs: Sequence[torch.Tensor]


def noisy_runs(
    program: ExportedProgram,
    placeholders: Sequence[object],
    *,
    watched: Collection[Node],
    fed: Mapping[Node, torch.Tensor],
    draws: int,
) -> Iterator[NoisyRun]:
    """Run the program, each time with other noise; the same in every call.

    Args:
        placeholders: The values of the program's placeholders, in order.
        watched: The nodes whose values are wanted. Only what they and the outputs need is run.
        fed: What readers of a node are given in place of what it computes.
        draws: How often.
    """
    output = next(node for node in program.graph.nodes if node.op == "output")
    needed = _ancestors([output, *watched])
    for draw in range(draws):
        runner = _NoisyInterpreter(program, needed, watched, fed, seed=draw)
        with torch.no_grad():
            outputs = runner.run(*placeholders)
        tensors = [leaf for leaf in tree_leaves(outputs) if torch.is_tensor(leaf)]
        yield NoisyRun(runner.values, tensors)


class _NoisyInterpreter(Interpreter):
    """Moves what each operator computes by up to one step of its dtype."""

    def __init__(
        self,
        program: ExportedProgram,
        needed: set[Node],
        watched: Collection[Node],
        fed: Mapping[Node, torch.Tensor],
        *,
        seed: int,
    ) -> None:
        super().__init__(program.graph_module)
        self._needed, self._watched, self._fed = needed, watched, fed
        self._generator = torch.Generator().manual_seed(seed)
        self.values: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> object:
        if n not in self._needed and n.op != "placeholder":  # inserted beside the original
            return None
        result = super().run_node(n)
        if n.op == "call_function" and not _is_view(n):
            result = tree_map(self._moved, result)
        if n in self._watched:
            assert isinstance(result, torch.Tensor)
            self.values[n] = result
        return self._fed.get(n, result)

    def _moved(self, value: object) -> object:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        share = torch.empty(value.shape).uniform_(-1, 1, generator=self._generator)
        # Zeros and infinities, which masks are made of, stay.
        return torch.where(value.isfinite(), value + value * (share * _step(value)), value).to(
            value.dtype
        )


def _step(value: torch.Tensor) -> float:
    return torch.finfo(value.dtype).eps


def _is_view(node: Node) -> bool:
    """True where nothing is computed: the result is (perhaps) memory of an argument."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # getitem, and arithmetic on sizes
    return any(one.alias_info is not None for one in target._schema.returns)


def _ancestors(nodes: Sequence[Node]) -> set[Node]:
    found, stack = set(nodes), list(nodes)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                stack.append(source)
    return found
