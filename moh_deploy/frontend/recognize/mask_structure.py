"""Find the structure of masks: causal, windows, chunks, prefixes, packed documents, padding.

By what they compute, however they are written. The part of the program that makes a layer's masks
is run at many sizes, on inputs with padding and ids in many places. Without padding, each query has
to see keys from a first to an end, both of a simple form (`Edge`); padding has to hide whole keys.
A structure is taken where it explains every query of every run.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import product
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.layer import MaskTerm, MoHLayer
from moh_deploy.frontend.recognize.mask_runs import MaskRun, MaskRuns, NoStructureError
from moh_deploy.frontend.recognize.mask_trials import MaskTrials

CountedFrom = Literal["position", "index"] | Node


@dataclass(frozen=True)
class Edge:
    """Where the keys that a query sees begin, or end: `counts // chunk * chunk + offset`, or
    `at_least` where that is more."""

    # The query's place among keys, where it is one of the last (s + T - S), or among queries
    # (s), or what whole numbers [batch or 1, queries] of the model say.
    counts: CountedFrom
    offset: int = 0
    chunk: int = 1
    at_least: int | Node | None = None  # a number, or one for each sequence


CAUSAL = Edge("position", 1)


@dataclass(frozen=True)
class MaskStructure:
    """Which keys each query of a layer sees: those from `first` to `end`, of its own document, that
    are no padding. `rest` adds to their scores.
    """

    first: Edge | None = None  # None: all from the first key on are seen
    end: Edge | None = None  # None: all up to the last
    # [batch, keys]: whether a key is seen, and whether that is where it is 0.
    padding: tuple[tuple[Node, bool], ...] = ()
    documents: Node | None = None  # [batch, keys], in order: a query sees those of its own number
    rest: tuple[MaskTerm, ...] = ()  # what adds to scores, the last applied first

    @property
    def words(self) -> str:
        """Return the text that `inspect` shows: `causal, window of 128, padding`."""
        first, end, causal = self.first, self.end, self.end == CAUSAL
        found = ["causal"] if causal else []
        if first is not None and first.chunk > 1:
            before = -first.offset // first.chunk
            found.append(f"chunks of {first.chunk}" + (f" and {before} before" if before else ""))
        elif first is not None and causal:
            found.append(f"window of {1 - first.offset}")
        elif first is not None:
            found.append("window")
        if end is not None and not causal and (first is None or end.at_least is not None):
            found.append("prefix" if end.at_least is not None else "keys up to a position")
        found += ["documents"] * (self.documents is not None) + ["padding"] * bool(self.padding)
        found += ["a bias"] * bool(self.rest)
        return ", ".join(found) or "hides nothing"


@dataclass
class MaskReader:
    """Reads the masks of a program's layers.

    Args:
        program: Normalized.
    """

    program: ExportedProgram
    trials: MaskTrials
    _found: dict[object, MaskStructure | str] = field(default_factory=dict)

    def structure(self, layer: MoHLayer) -> MaskStructure | str | None:
        """Return the structure of a layer's masks, why it is unknown, or None where
        the layer has no mask."""
        scores = layer.core.scores
        if scores is None or not (scores.masks or scores.is_causal):
            return None
        runs = MaskRuns(self.program, self.trials, layer, self._dependent, self._constants)
        try:
            hiding, rest = runs.terms()
            # Layers share their masks, or compute the same in each.
            sizes = (product(layer.batch), product(layer.tokens), product(scores.key_axes))
            key = (scores.is_causal, sizes, runs.fingerprint(hiding))
        except NoStructureError as error:
            return str(error)
        if key not in self._found:
            try:
                self._found[key] = self._read(runs, hiding)
            except NoStructureError as error:
                self._found[key] = str(error)
        found = self._found[key]
        return found if isinstance(found, str) else replace(found, rest=tuple(rest))

    def _read(self, study: MaskRuns, hiding: Sequence[MaskTerm]) -> MaskStructure:
        scores = study.layer.core.scores
        assert scores is not None
        if not hiding and not scores.is_causal:
            raise NoStructureError("it adds more to scores than what hides keys")
        runs = study.run(hiding)
        try:
            found = _explained([run._replace(counted=torch.ones_like(run.counted)) for run in runs])
        except NoStructureError:
            # What a padded query sees is as it may be: models open rows that have no key left.
            found = _explained(runs)
            square = all(run.seen.shape[1] == run.seen.shape[2] for run in runs)
            if not square and found.end != CAUSAL:
                raise
        # A finite fill weighs all keys alike where it hides all: no op does where the query counts.
        blind = any(bool((run.counted & ~run.seen.any(-1)).any()) for run in runs)
        if blind and (found.first or found.end):
            raise NoStructureError("a query that is no padding sees no key")
        return found

    @cached_property
    def _dependent(self) -> set[Node]:
        signature = self.program.graph_signature
        return graph.nodes_that_depend_on(self.program.graph, signature.user_inputs)

    @cached_property
    def _constants(self) -> Constants:
        return Constants(self.program)


def _explained(trials: Sequence[MaskRun]) -> MaskStructure:
    """Return the structure that explains all trials.

    Raises:
        NoStructureError: None does.
    """
    problems: list[str] = []
    for first, end in _edges(trials, problems):
        for documents in (None, *_documents(trials)):
            candidate = MaskStructure(first, end, documents=documents)
            padding = _padding(trials, candidate, problems)
            if padding is not None:
                return replace(candidate, padding=padding)
    raise NoStructureError(problems[0])


def _edges(
    trials: Sequence[MaskRun], problems: list[str]
) -> Iterator[tuple[Edge | None, Edge | None]]:
    """Yield the edges that the keys of queries may have; note why they are missing."""
    # Of each size the run that hides least shows what positions alone do.
    neutral: dict[tuple[int, ...], tuple[int, MaskRun]] = {}
    for trial in trials:
        size, seen = tuple(trial.seen.shape), int(trial.seen[trial.counted].sum())
        if size not in neutral or seen > neutral[size][0]:
            neutral[size] = seen, trial
    plain = [trial for _, trial in neutral.values()]
    gaps = next(filter(None, map(_gaps, plain)), None)
    if gaps is not None:
        problems.append(gaps)
        return
    numbers = [
        node
        for node, value in trials[0].numbers.items()
        if not value.is_floating_point()
        and value.dtype != torch.bool
        and all(node in trial.numbers for trial in trials)
    ]
    found: list[Edge | str | None] = []
    for is_end in (False, True):
        edge = _edge(plain, ["position", "index"], is_end=is_end)
        if isinstance(edge, str) and is_end:
            edge = _prefix(plain) or edge
        found.append(edge)
    problems += [edge for edge in found if isinstance(edge, str)]
    # What has no form may be what inputs say of each query, or of keys.
    per_query = [node for node in numbers if all(_is_per_query(trial, node) for trial in trials)]
    choices: list[list[Edge | None]] = []
    for is_end, edge in zip((False, True), found, strict=True):
        by_inputs = [_edge(trials, [node], is_end=is_end) for node in per_query]
        others = [each for each in by_inputs if not isinstance(each, str) and each is not None]
        choices.append([None if isinstance(edge, str) else edge, *others])
    for node in numbers:
        if all(trial.numbers[node].numel() == len(trial.seen) for trial in trials):
            choices[1].append(replace(CAUSAL, at_least=node))
    yield from itertools.product(choices[0], choices[1])


def _gaps(trial: MaskRun) -> str | None:
    """Return why the keys of queries are no ranges."""
    first, end = _range_of(trial.seen)
    key = torch.arange(trial.seen.shape[2])
    blind = ~trial.seen.any(-1) & trial.counted
    if bool(blind.any()):
        return f"query {int(blind.nonzero()[0, 1])} sees no key"
    whole = (key >= first[..., None]) & (key < end[..., None])
    wrong = (whole != trial.seen).any(-1) & trial.counted
    if not bool(wrong.any()):
        return None
    query = int(wrong.nonzero()[0, 1])
    return f"query {query} of {trial.seen.shape[1]} sees keys with gaps"


def _range_of(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first key that each query sees and the end of those that it sees, [B, S]."""
    key = torch.arange(seen.shape[2])
    return torch.where(seen, key, seen.shape[2]).amin(-1), torch.where(seen, key + 1, 0).amax(-1)


def _counts(trial: MaskRun, counts: object) -> Tensor:
    """Return what an edge counts, [B or 1, S]."""
    _, queries, keys = trial.seen.shape
    if isinstance(counts, Node):
        return trial.numbers[counts].reshape(-1, queries).long()
    return torch.arange(queries)[None] + (keys - queries if counts == "position" else 0)


def _edge(
    trials: Sequence[MaskRun], counted: Sequence[CountedFrom], *, is_end: bool
) -> Edge | str | None:
    """Return the form of an edge, None for that of all keys, or why it is unknown."""
    # Where the edge is that of all keys, the form may lie beyond; queries that see nothing have no
    # edge.
    found = [_range_of(trial.seen)[is_end] for trial in trials]
    limits = [trial.seen.shape[2] if is_end else 0 for trial in trials]
    sees = [trial.seen.any(-1) & trial.counted for trial in trials]
    inner = [(edge != limit) & s for edge, limit, s in zip(found, limits, sees, strict=True)]
    if not any(bool(mask.any()) for mask in inner):
        return None
    # Chunks are as long as their edges are apart.
    steps = {int(step) for edge in found for step in edge.diff(dim=-1).unique() if step > 1}
    for chunk, counts in itertools.product((1, *sorted(steps)), counted):
        values = [
            (_counts(trial, counts) // chunk * chunk).expand(edge.shape)
            for trial, edge in zip(trials, found, strict=True)
        ]
        offsets = {
            int(distance)
            for edge, value, mask in zip(found, values, inner, strict=True)
            for distance in (edge - value)[mask].unique()
        }
        if len(offsets) != 1:
            continue
        (offset,) = offsets
        sign = 1 if is_end else -1
        if all(
            bool((sign * (value + offset - limit) >= 0)[s & ~mask].all())
            for value, limit, s, mask in zip(values, limits, sees, inner, strict=True)
        ):
            return Edge(counts, offset, chunk)
    query = next(int(mask.nonzero()[0, 1]) for mask in inner if bool(mask.any()))
    return f"where the keys of query {query} {'end' if is_end else 'begin'} follows no known rule"


def _is_per_query(trial: MaskRun, node: Node) -> bool:
    batch, queries, _ = trial.seen.shape
    value = trial.numbers.get(node)
    return (
        value is not None
        and value.numel() in (queries, batch * queries)
        and [size for size in value.shape if size != 1]
        in ([size for size in shape if size != 1] for shape in ((queries,), (batch, queries)))
    )


def _prefix(trials: Sequence[MaskRun]) -> Edge | None:
    """Return a causal edge that lies for all queries before a number at that, if it is one."""
    lengths: set[int] = set()
    for trial in trials:
        edge, causal = _range_of(trial.seen)[1], _counts(trial, "position") + 1
        beyond = (edge != causal) & trial.counted
        if bool(((edge < causal) & trial.counted).any()):
            return None
        lengths |= {int(length) for length in edge[beyond].unique() if length < trial.seen.shape[2]}
    return replace(CAUSAL, at_least=lengths.pop()) if len(lengths) == 1 else None


def _documents(trials: Sequence[MaskRun]) -> Iterator[Node]:
    """Yield what numbers the keys in order: 0 or 1 more than the key before, in each trial."""
    for node in trials[0].numbers:
        values = [trial.numbers.get(node) for trial in trials]
        if all(
            value is not None
            and not value.is_floating_point()
            and value.dtype != torch.bool
            and value.shape == (len(trial.seen), trial.seen.shape[2])
            and trial.seen.shape[1] <= trial.seen.shape[2]
            and bool(((value.diff() == 0) | (value.diff() == 1)).all())
            for value, trial in zip(values, trials, strict=True)
        ):
            yield node


def _reached(trial: MaskRun, structure: MaskStructure) -> Tensor:
    """Return the keys that a structure lets queries see, apart from padding: bool [B, S, T]."""
    batch, queries, keys = trial.seen.shape
    key = torch.arange(keys)
    seen = torch.ones(batch, queries, keys, dtype=torch.bool)
    for edge in (structure.first, structure.end):
        if edge is None:
            continue
        at = _counts(trial, edge.counts) // edge.chunk * edge.chunk + edge.offset
        if isinstance(edge.at_least, Node):
            at = torch.maximum(at, trial.numbers[edge.at_least].reshape(-1, 1).long())
        elif edge.at_least is not None:
            at = at.clamp(min=edge.at_least)
        seen &= (key >= at[..., None]) if edge is structure.first else (key < at[..., None])
    if structure.documents is not None:
        number = trial.numbers[structure.documents]
        seen &= number[:, keys - queries :, None] == number[:, None]
    return seen


def _padding(
    trials: Sequence[MaskRun], structure: MaskStructure, problems: list[str]
) -> tuple[tuple[Node, bool], ...] | None:
    """Return what says which keys are padding; None where a structure does not explain all trials,
    and note why."""
    allowed = [_reached(trial, structure) for trial in trials]
    chosen: list[tuple[Node, bool]] = []
    candidates = list(_key_flags(trials))

    def unexplained(seen: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(trials, seen, strict=True)
        return [(trial.seen != mine).any(-1) & trial.counted for trial, mine in pairs]

    left = sum(int(mask.sum()) for mask in unexplained(allowed))
    while left:
        tries = []
        for node, hides in candidates:
            pairs = zip(trials, allowed, strict=True)
            seen = [mine & _visible(trial, node, hides)[:, None] for trial, mine in pairs]
            tries.append((sum(int(mask.sum()) for mask in unexplained(seen)), node, hides, seen))
        best = min(tries, key=lambda tried: tried[0], default=None)
        if best is None or best[0] >= left:
            problems.append(_why_unexplained(trials, allowed))
            return None
        left, node, hides, allowed = best
        chosen.append((node, hides))
    return tuple(chosen)


def _why_unexplained(trials: Sequence[MaskRun], allowed: Sequence[Tensor]) -> str:
    for trial, seen in zip(trials, allowed, strict=True):
        wrong = (trial.seen != seen).any(-1) & trial.counted
        if bool(wrong.any()):
            batch, query = (int(place) for place in wrong.nonzero()[0])
            if not bool(trial.seen[batch, query].any()):
                return f"query {query} sees no key where keys are padding"
    return "what inputs hide is neither whole keys nor documents in order"


def _visible(trial: MaskRun, node: Node, hides: bool) -> Tensor:
    """Return which keys a flag lets queries see: bool [B or 1, T]."""
    value = trial.numbers[node]
    return ((value != 0) != hides).reshape(-1, trial.seen.shape[2])


def _key_flags(trials: Sequence[MaskRun]) -> Iterator[tuple[Node, bool]]:
    """Yield what says 0 or 1 of each key, and whether 1 hides; no query sees what it hides."""
    for node in trials[0].numbers:
        values = [trial.numbers.get(node) for trial in trials]
        if not all(
            value is not None
            and value.ndim >= 2
            and (value.shape[0], value.shape[-1]) == (len(trial.seen), trial.seen.shape[2])
            and value.numel() == value.shape[0] * value.shape[-1]
            and bool(((value == 0) | (value == 1)).all())
            for value, trial in zip(values, trials, strict=True)
        ):
            continue
        for hides in (False, True):
            hidden = ((trial, _visible(trial, node, hides)[:, None]) for trial in trials)
            if not any(
                bool(((trial.seen & ~seen).any(-1) & trial.counted).any()) for trial, seen in hidden
            ):
                yield node, hides
