"""Run the masks of a layer on their own: at many sizes, with padding and ids in many places."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import Argument, map_arg

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import Size, leaves, product, size_of
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.cores.softmax import HIDING_FILL
from moh_deploy.frontend.recognize.layer import MaskTerm, MoHLayer
from moh_deploy.frontend.recognize.mask_numbers import COMPARISONS, MaskNumbers
from moh_deploy.frontend.recognize.mask_trials import MaskTrials, is_flags, kinds_of


def hidden_keys(term: MaskTerm, value: Tensor, layer: MoHLayer) -> Tensor | None:
    """Return which keys a mask hides: bool [batch or 1, queries or 1, others, keys or 1].

    Args:
        value: Of the mask's operand.

    Returns:
        None where the mask's dimensions are no batch, queries and keys of their own.
    """
    # Scores take -1e4 or less, times what the model scales it with, for minus infinity.
    if term.kind == "add":
        hidden = value.double() * term.value <= HIDING_FILL
    else:
        hidden = (value == 0) if term.kind == "keep" else (value != 0)
    places = _dims_of(term, layer)
    if places is None:
        return None
    others = [axis for axis in range(value.ndim) if axis not in places]
    ordered = hidden.permute(*(place for place in places if place is not None), *others)
    sizes = [1 if place is None else value.shape[place] for place in places]
    return ordered.reshape(*sizes, -1).transpose(2, 3)


def _dims_of(term: MaskTerm, layer: MoHLayer) -> list[int | None] | None:
    """Return which dimensions of a mask are batch, queries and keys, with None for what it lacks;
    None where its layout does not tell."""
    # A mask that broadcasts over a dimension of the scores has an empty one there; one that has it
    # not alone does not tell which axis it is.
    assert layer.core.scores is not None
    groups = [leaves(dim) for dim in term.operand.layout]
    places: list[int | None] = []
    for wanted in map(leaves, (layer.batch, layer.tokens, layer.core.scores.key_axes)):
        if wanted and groups.count(wanted) > 1:
            return None
        if groups.count(wanted) == 0 and any(axis in group for axis in wanted for group in groups):
            return None
        places.append(groups.index(wanted) if wanted in groups else None)
    return places


# A mask of more places takes long to try.
_MOST_PLACES = 1 << 25
_MOST_NODES = 400
# Inputs take many values at each size.
_MOST_BY_INPUTS = 256
_CONTENT = frozenset(
    ("linear", "mm", "bmm", "matmul", "addmm", "baddbmm", "einsum", "embedding", "convolution")
    + (*graph.SOFTMAXES, "scaled_dot_product_attention", "layer_norm", "native_layer_norm")
)


class NoStructureError(Exception):
    """Why masks have no structure that is known."""


class MaskRun(NamedTuple):
    """Which keys a layer's masks let each query see, at some sizes and values of the inputs."""

    seen: Tensor  # bool [B, S, T]
    counted: Tensor  # bool [B, S]: queries that are no padding
    numbers: Mapping[Node, Tensor]  # what the inputs decide, of few places


@dataclass
class MaskRuns:
    """Runs the masks of one layer."""

    program: ExportedProgram
    trials: MaskTrials
    layer: MoHLayer
    dependent: set[Node]
    constants: Constants

    def terms(self) -> tuple[list[MaskTerm], list[MaskTerm]]:
        """Return the masks that hide keys or leave scores as they are, and those that do more."""
        assert self.layer.core.scores is not None
        hiding: list[MaskTerm] = []
        rest: list[MaskTerm] = []
        for term in self.layer.core.scores.masks:
            is_hiding = term.kind != "add"
            if not is_hiding:
                # What cannot be run alone, a bias from weights say, is added as before.
                with suppress(NoStructureError):
                    is_hiding = self._only_hides(term)
            (hiding if is_hiding else rest).append(term)
        return hiding, rest

    def _only_hides(self, term: MaskTerm) -> bool:
        """Tell whether what is added is 0 or hides, at the example's sizes."""
        part = self._part([term])
        for drawn in self._drawn(self.trials.sizes, part):
            values = self._run(part, drawn)
            if values is not None and not _hides_or_nothing(term, values[term.operand.node]):
                return False
        return True

    def fingerprint(self, terms: Sequence[MaskTerm]) -> object:
        """Return what is the same for masks that are computed in the same way."""
        part = self._part(terms)
        number = {node: place for place, node in enumerate(part)}

        def named(node: Node) -> Argument:
            # A node outside of the part is a size, or is read for its own.
            value = node.meta["val"]
            known = number.get(node)
            return known if known is not None else str(getattr(value, "shape", value))

        def form(node: Node) -> object:
            if not graph.op(node):
                return node.name
            return str(node.target), str(map_arg((node.args, dict(node.kwargs)), named))

        results = [
            (number[term.operand.node], term.kind, term.value, str(_dims_of(term, self.layer)))
            for term in terms
        ]
        return tuple(map(form, part)), tuple(results)

    def run(self, terms: Sequence[MaskTerm]) -> list[MaskRun]:
        """Run masks at all sizes, on all values of the inputs.

        Raises:
            NoStructureError: That was not possible, or did not show all that they may do.
        """
        part = self._part(terms)
        is_fixed = all(extent.is_Integer for extent in self._score_sizes[1:])
        conditions = {
            node: set[bool]()
            for node in part
            if graph.tensor(node).dtype == torch.bool
            and (node in self.dependent or (graph.op(node) in COMPARISONS and not is_fixed))
        }
        # A row of a table may hide anything until a run has read it.
        reads = MaskNumbers(self.dependent, self.constants).rows_read(part) or {}
        unread = {node: set(range(read.rows)) for node, read in reads.items()}
        rows = max(map(len, unread.values()), default=0)
        found: list[MaskRun] = []
        large = self._large(part)
        sizes = [*self.trials.small(), *large]
        draws = [self._drawn(at, part) for at in sizes]
        if rows:
            most = max(sizes, key=lambda at: self._scores_at(at)[1])
            draws.append(self.trials.in_order(most, rows, self._scores_at(most)[1]))
        for drawn in itertools.chain(*draws):
            values = self._run(part, drawn)
            trial = None if values is None else self._trial(terms, values, drawn)
            if values is None or trial is None:
                continue
            found.append(trial)
            for node, seen in conditions.items():
                seen |= {bool(flag) for flag in (values[node].any(), values[node].all())}
            for node, read in reads.items():
                unread[node] -= set((values[read.places] % read.rows).flatten().tolist())
        if not found:
            raise NoStructureError("it could not be run on its own")
        # What no run changed may hide more than is seen.
        same = next((node for node, seen in conditions.items() if len(seen) < 2), None)
        if same is not None:
            raise NoStructureError(f"{graph.named(same)} was the same in all that was tried")
        left = next((node for node, places in unread.items() if places), None)
        if left is not None:
            raise NoStructureError(f"not all rows that {graph.named(left)} may read could be tried")
        needed = max((self._scores_at(sizes)[2] for sizes in large), default=0)
        tried = {trial.seen.shape[1:] for trial in found}
        if needed > max(keys for _, keys in tried):
            raise NoStructureError(f"it could not be run with {needed} keys")
        if len(tried) < 2 and not is_fixed:
            raise NoStructureError("it ran at one size only")
        return found

    def _part(self, terms: Sequence[MaskTerm]) -> list[Node]:
        """Return what masks are computed of, in order: inputs, constants and operators."""
        queue = [term.operand.node for term in terms]
        seen = set(queue)
        for node in queue:
            if graph.op(node) in _CONTENT:
                raise NoStructureError(f"{graph.named(node)} computes it from the model's content")
            # An operator that reads no values gets its sizes without what they are read of.
            for source in () if graph.reads_shape_only(node) else node.all_input_nodes:
                if source not in seen and graph.is_tensor(source):
                    seen.add(source)
                    queue.append(source)
            if len(queue) > _MOST_NODES:
                raise NoStructureError(f"more than {_MOST_NODES} operators compute it")
        for node, value in zip(self._inputs, self.trials.values, strict=True):
            if (
                node in seen
                and not is_flags(value)
                and (value.is_floating_point() or value.ndim in (0, 3, 4))
            ):
                raise NoStructureError(f"the input '{node.name}' says which keys are hidden")
        return [node for node in self.program.graph.nodes if node in seen]

    def _large(self, part: Sequence[Node]) -> list[Mapping[str, int]]:
        """Return sizes at which all that the numbers and tables of masks do is to be seen."""
        numbers = MaskNumbers(self.dependent, self.constants)
        unknown = numbers.unknown(part)
        if unknown is not None:
            raise NoStructureError(f"no number tells at which keys {graph.named(unknown)} acts")
        reads = numbers.rows_read(part)
        # With one number of keys, tables are seen whole at any size: all their rows are read.
        is_fixed = self._score_sizes[2].is_Integer
        sized = numbers.without_tables(part, reads) if reads and is_fixed else part
        stored = [value for value in map(self.constants, sized) if value is not None and value.ndim]
        table = max((size for value in stored for size in value.shape), default=0)
        # A window shows where there are more keys than it has; a chunk where there are three.
        largest, scaled = numbers.largest(part)
        by_inputs, _ = numbers.largest([node for node in part if node in self.dependent])
        if max(by_inputs, table if reads is None else 0) > _MOST_BY_INPUTS:
            raise NoStructureError("the numbers that inputs are computed with are too large to try")
        if (largest <= 4 and table <= 4) or not self.trials.sizes:
            return []  # all is to be seen at small sizes, or the model has one size only
        bounds = [3 * largest + 3]
        if not scaled:
            bounds.append(largest + largest // 8 + 3)
        for bound in bounds:
            sizes = list(self.trials.large(max(bound, table)))
            # As large as the model can be is enough.
            if max(math.prod(self._scores_at(at)) for at in sizes) <= _MOST_PLACES:
                # A number may act on one dimension and show in another.
                wide = [at for at in self.trials.large(max(bound, table), 5) if self._is_small(at)]
                # What is computed from sizes differs from one to the next.
                top = max(self._scores_at(at)[1] for at in sizes)
                next_to = self.trials.large(top - top // 16 - 1)
                return [*sizes, *next_to, *wide]
        raise NoStructureError(f"it has to be tried with {bounds[-1]} keys, which takes too long")

    def _is_small(self, sizes: Mapping[str, int]) -> bool:
        return math.prod(self._scores_at(sizes)) < _MOST_PLACES >> 6

    def _scores_at(self, sizes: Mapping[str, int]) -> list[int]:
        """Return batch, queries and keys."""
        try:
            symbols = self._symbols(self.trials.resize(sizes))
        except ConfigError as error:  # an axis would become smaller than 0
            raise NoStructureError("its sizes hang together in a way that is not tried") from error
        return [self._extent(extent, symbols) for extent in self._score_sizes]

    @property
    def _score_sizes(self) -> tuple[Size, Size, Size]:
        assert self.layer.core.scores is not None
        keys = self.layer.core.scores.key_axes
        return product(self.layer.batch), product(self.layer.tokens), product(keys)

    @cached_property
    def _inputs(self) -> list[Node]:
        places = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        return [places[name] for name in self.program.graph_signature.user_inputs]

    def _symbols(self, values: Sequence[Tensor]) -> dict[Size, Size]:
        """Return the sizes that inputs of these shapes give the program's symbols."""
        return {
            extent: sympy.Integer(size)
            for node, value in zip(self._inputs, values, strict=True)
            for extent, size in zip(graph.shape(node), value.shape, strict=True)
            if extent.is_Symbol
        }

    @staticmethod
    def _extent(extent: Size, symbols: Mapping[Size, Size]) -> int:
        value = extent.xreplace(dict(symbols))
        if not value.is_Integer:
            raise NoStructureError(f"its size {extent} depends on values")
        return int(value)

    def _drawn(self, sizes: Mapping[str, int], part: Sequence[Node]) -> Iterator[Sequence[Tensor]]:
        """Yield inputs of these sizes: neutral ones first, then any."""
        try:
            resized = self.trials.resize(sizes)
        except ConfigError:  # an axis would become smaller than 0
            return
        generator = torch.Generator().manual_seed(sum(sizes.values()))
        compared = MaskNumbers(self.dependent, self.constants).compared(part)
        # Kinds of tokens number documents by their sums; valid tokens are 0 or 1.
        summed = any(graph.op(node) == "cumsum" for node in part)
        valid = None if self.trials.valid is None else self.trials.valid[0]
        kinds = [
            kinds_of(value, compared, generator, is_summed=summed and place != valid)
            if node in part
            else [value]
            for place, (node, value) in enumerate(zip(self._inputs, resized, strict=True))
        ]
        # Ones and zeros of all together: of masks that mean the opposite, too.
        flags = [place for place, kind in enumerate(kinds) if len(kind) > 1]
        is_small = self._is_small(sizes)
        # All tokens end a document, say.
        for number in compared[:12] if summed and is_small else ():
            yield [
                torch.full_like(kind[0], number)
                if len(kind) > 1 and kind[0].dtype == torch.int64 and place != valid
                else kind[0]
                for place, kind in enumerate(kinds)
            ]
        for chosen in itertools.product((0, 1), repeat=min(3 if is_small else 1, len(flags))):
            at = dict(zip(flags, chosen, strict=False))
            yield [kind[at.get(place, 0)] for place, kind in enumerate(kinds)]
        for _ in range((10 if is_small else 2) if flags else 0):
            yield [kind[int(torch.randint(len(kind), (), generator=generator))] for kind in kinds]

    def _run(self, part: Sequence[Node], inputs: Sequence[Tensor]) -> dict[Node, Tensor] | None:
        """Return the values of all nodes of a part that inputs decide, and of its last ones."""
        symbols = self._symbols(inputs)
        values: dict[Node, object] = dict(zip(self._inputs, inputs, strict=True))
        # A stored tensor may be the mask.
        values |= {node: stored for node in part if (stored := self.constants(node)) is not None}

        def look_up(node: Node) -> object:
            if node in values:
                return values[node]
            if not graph.is_tensor(node):
                return self._extent(size_of(node.meta["val"]), symbols)
            # Stands for a tensor that is read for its shape only.
            shape = [self._extent(extent, symbols) for extent in graph.shape(node)]
            return torch.empty(shape, dtype=graph.tensor(node).dtype)

        try:
            with torch.no_grad():
                for node in filter(graph.op, part):
                    values[node] = graph.computed(node, look_up)
        except (RuntimeError, IndexError, TypeError, ValueError, ArithmeticError, AssertionError):
            return None
        return {node: value for node, value in values.items() if isinstance(value, Tensor)}

    def _trial(
        self, terms: Sequence[MaskTerm], values: Mapping[Node, Tensor], inputs: Sequence[Tensor]
    ) -> MaskRun | None:
        symbols = self._symbols(inputs)
        batch, queries, keys = (self._extent(extent, symbols) for extent in self._score_sizes)
        if 0 in (batch, queries, keys):
            return None
        seen = torch.ones(batch, queries, keys, dtype=torch.bool)
        assert self.layer.core.scores is not None
        if self.layer.core.scores.is_causal:
            seen = seen.tril()
        for term in terms:
            if term.kind == "add" and not _hides_or_nothing(term, values[term.operand.node]):
                raise NoStructureError("it adds more to scores than what hides keys")
            hidden = hidden_keys(term, values[term.operand.node], self.layer)
            if hidden is None:
                raise NoStructureError("its dimensions are no batch, queries and keys")
            if not bool((hidden == hidden[:, :, :1]).all()):
                raise NoStructureError("heads have masks of their own")
            try:
                seen = seen & ~hidden[:, :, 0].expand(batch, queries, keys)
            except RuntimeError as error:
                raise NoStructureError("it has another size than the scores") from error
        counted = torch.ones(batch, queries, dtype=torch.bool)
        if self.trials.valid is not None:
            place, marks_padding = self.trials.valid
            valid = (inputs[place] != 0) != marks_padding
            # Queries are the last tokens.
            if valid.ndim == 2 and len(valid) == batch and queries <= valid.shape[1]:
                counted = valid[:, valid.shape[1] - queries :]
        few = 4 * (batch + 1) * (queries + keys)
        # What says which tokens are valid first, then what is 0 or 1 in any case: an input that was
        # tried as flags may be kinds of tokens.
        named = None if self.trials.valid is None else self._inputs[self.trials.valid[0]]
        order = sorted(values, key=lambda node: (node != named, values[node].dtype != torch.bool))
        numbers = {
            node: values[node]
            for node in order
            if node in self.dependent and values[node].numel() <= few
        }
        return MaskRun(seen, counted, numbers)


def _hides_or_nothing(term: MaskTerm, value: Tensor) -> bool:
    added = value.double() * term.value
    return bool(((added == 0) | (added <= HIDING_FILL)).all())
