"""Find the input that says which tokens are valid: no attention reads the others.

By what masks of attention compute, however they are written: the part of the program that makes one
is run on inputs with padding in many places. Keys must be hidden where the input is 0, or where it
is 1, and nowhere else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.axes import leaves, product
from moh_deploy.frontend.fx.containers import output_nodes
from moh_deploy.frontend.fx.graph import ancestors, nodes_that_depend_on, op, shape
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.cores.softmax import HIDING_FILL
from moh_deploy.frontend.recognize.layer import MaskTerm, MoHLayer
from moh_deploy.frontend.recognize.routers.trial import run_nodes


def padding_inputs(
    program: ExportedProgram, layers: Sequence[MoHLayer], arguments: Sequence[torch.Tensor]
) -> dict[int, bool]:
    """Return the places of the inputs that tell padding, and whether each is 1 for it, or 0.

    Each is [batch, tokens] of 0 and 1, and every layer whose keys are its tokens hides those of
    padding, and no others for its sake. The tokens are those of a layer or of an output.

    Args:
        arguments: Example values of the user inputs, in order.
    """
    names = program.graph_signature.user_inputs
    places = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return {
        index: padding
        for index, (name, value) in enumerate(zip(names, arguments, strict=True))
        if value.ndim == 2 and bool(((value == 0) | (value == 1)).all())
        for padding in (False, True)
        if _Candidate(program, places[name], value, padding).says_padding(layers)
    }


@dataclass(frozen=True)
class _Candidate:
    """An input that may say which tokens are valid."""

    program: ExportedProgram
    node: Node
    value: torch.Tensor  # its example, [batch, tokens]
    marks_padding: bool  # it may be 1 for padding; else 0
    _made: dict[Node, list[torch.Tensor] | None] = field(default_factory=dict)

    def says_padding(self, layers: Sequence[MoHLayer]) -> bool:
        """Tell whether all layers with its tokens as keys hide those of padding."""
        # [batch, tokens]; by its size in the program, tokens are keys [B, H, T, D] of layers.
        tokens = shape(self.node)[1]
        reading = [
            layer
            for layer in layers
            if layer.core.scores is not None and product(layer.core.scores.key_axes) == tokens
        ]
        # A mask of what is only read, such as a text beside an image, leaves nothing out.
        has_tokens = any(product(layer.tokens) == tokens for layer in reading) or any(
            tokens in shape(output) for output in output_nodes(self.program)
        )
        return has_tokens and bool(reading) and all(map(self._hides_keys, reading))

    def _hides_keys(self, layer: MoHLayer) -> bool:
        assert layer.core.scores is not None
        return any(
            self._hides(term, layer)
            for term in layer.core.scores.masks
            if term.operand.node in self._decided
        )

    @cached_property
    def _decided(self) -> set[Node]:
        """The nodes whose values depend on this input alone, and on sizes."""
        # A mask that hangs on tokens, too, is computed of more than which of them are valid.
        graph, inputs = self.program.graph, self.program.graph_signature.user_inputs
        others = [name for name in inputs if name != self.node.name]
        return nodes_that_depend_on(graph, [self.node.name]) - nodes_that_depend_on(graph, others)

    @cached_property
    def _masks(self) -> list[torch.Tensor]:
        """Which tokens are valid, bool: all first, then with padding."""
        return [torch.ones_like(self.value, dtype=torch.bool), *_padded(self.value)]

    def _hides(self, term: MaskTerm, layer: MoHLayer) -> bool:
        """Tell whether one mask of a layer hides keys that are padding, and no others."""
        assert layer.core.scores is not None
        # A mask that broadcasts over a dimension of the scores has an empty one there; one that
        # has it not alone does not tell which axis it is.
        groups = [leaves(dim) for dim in term.operand.layout]
        axes: list[int | None] = []
        for wanted in map(leaves, (layer.batch, layer.tokens, layer.core.scores.key_axes)):
            is_there = bool(wanted) and groups.count(wanted) == 1
            axes.append(groups.index(wanted) if is_there else None)
        made = self._values(term.operand.node)
        if made is None or axes[0] is None or axes[2] is None:
            return False
        is_open, *hidden = [_hidden(term, value, axes) for value in made]
        if (is_open.shape[0], is_open.shape[-1]) != tuple(self.value.shape):
            return False
        hides = False
        for mask, found in zip(self._masks[1:], hidden, strict=True):
            padding = ~mask[:, None, None, :].expand(found.shape)
            # What a padded query sees is as it may be: models open rows that have no key left.
            counted = torch.ones(found.shape, dtype=torch.bool)
            if found.shape[1] == mask.shape[1]:
                counted &= mask[:, :, None, None]
            if bool((found != (is_open | padding))[counted].any()):
                return False
            hides |= bool((padding & ~is_open & counted).any())
        return hides

    def _values(self, node: Node) -> list[torch.Tensor] | None:
        """Return what a node makes of each of the masks; None where it does not run on its own."""
        # Layers share their masks.
        if node not in self._made:
            needed, constants = set(ancestors(node)), Constants(self.program)
            nodes = [node for node in self.program.graph.nodes if node in needed and op(node)]
            given = [(mask != self.marks_padding).to(self.value.dtype) for mask in self._masks]
            runs = [run_nodes(nodes, {self.node: mask}, constants) for mask in given]
            found = [run[node] for run in runs if run is not None and node in run]
            self._made[node] = found if len(found) == len(runs) else None
        return self._made[node]


def _hidden(term: MaskTerm, value: torch.Tensor, axes: Sequence[int | None]) -> torch.Tensor:
    """Return which keys a mask hides: bool [batch, queries or 1, others, keys].

    Args:
        axes: Where batch, queries and keys are; None where it has no such axis of its own.
    """
    # Scores take -1e4 or less, times what the model scales it with, for minus infinity.
    if term.kind == "add":
        hidden = value.double() * term.value <= HIDING_FILL
    else:
        hidden = (value == 0) if term.kind == "keep" else (value != 0)
    batch, query, key = axes
    assert batch is not None
    assert key is not None
    queries = [] if query is None else [query]
    others = [axis for axis in range(value.ndim) if axis not in axes]
    ordered = hidden.permute(batch, *queries, *others, key)
    size = 1 if query is None else value.shape[query]
    return ordered.reshape(value.shape[batch], size, -1, value.shape[key])


def _padded(mask: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield masks with padding left, right and in holes; each sample has a valid token."""
    batch, tokens = mask.shape
    steps, half = torch.arange(tokens).expand(batch, tokens), max(1, tokens // 2)
    yield steps >= tokens - half
    yield steps < half
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        holes = torch.rand(batch, tokens, generator=generator) < 0.5
        holes[torch.arange(batch), torch.randint(tokens, (batch,), generator=generator)] = True
        yield holes
