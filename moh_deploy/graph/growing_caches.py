"""Find the caches of a decoder that grow: inputs that come back with new tokens behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, VectorSet

PAST_LENGTH = "past_sequence_length"
"""The input that says how many tokens a cache holds, where no size of another input does; something
in front of it where the model has that name."""


@dataclass(frozen=True)
class GrowingCache:
    """A cache that grows by concatenation."""

    past: ir.Value  # the input, [batch, ..., past, ...]
    joined: ir.Node  # the Concat that puts new keys or values behind it, and makes an output
    axis: int  # the axis of tokens

    @property
    def present(self) -> ir.Value:
        return self.joined.outputs[0]


@dataclass(frozen=True)
class CacheLengths:
    """Where the sizes of a decoder's caches come from, in the words of `CachesInPlace`."""

    past_dim: str  # the dimension of cached tokens
    past_length: str
    new_length: str | int
    # The new input that `past_length` is; None where sizes of other inputs tell.
    tells: str | None = None


def growing_caches(model: ir.Model, manifest: Manifest) -> tuple[GrowingCache, ...]:
    """Return every cache, in the order in which they grow.

    Raises:
        ConfigError: It has no cache, or a cache grows in another way; with the reason.
    """
    found: list[GrowingCache] = []
    outputs = set(model.graph.outputs)
    for node in model.graph:
        if node.op_type != "Concat" or node.domain or len(node.inputs) != 2:
            continue
        past, made = node.inputs[0], node.outputs[0]
        if past is None or made not in outputs or not _is_input(past) or past.shape is None:
            continue
        axis = node.attributes["axis"].as_int() % len(past.shape)
        # The first axis is that of sequences; a fixed one does not grow from call to call.
        if axis > 0 and not isinstance(past.shape[axis], int):
            found.append(GrowingCache(past, node, axis))
    known = {cache.present.name for cache in found}
    dims = {_dim(cache, manifest) for cache in found}
    for output in manifest.outputs:
        if output.name not in known and (why := _why_other(model, output.name, manifest, dims)):
            raise ConfigError(
                f"output '{output.name}' grows with the cache and cannot be written in place:"
                f" {why}.",
                hint="Return the cache of each layer as keys and as values, joined as"
                " torch.cat((past, new)). --cache concatenated leaves caches as they are.",
            )
    if not found:
        raise ConfigError(
            "the model has no cache that could be written in place: no output is an input with new"
            " tokens behind it (Concat).",
            hint="It has to take past keys and values as inputs, and to return them with the new"
            " ones. --cache concatenated leaves a model as it is.",
        )
    return tuple(found)


def cache_lengths(
    caches: Sequence[GrowingCache], manifest: Manifest, vectors: Sequence[VectorSet]
) -> CacheLengths:
    """Find what tells how many tokens caches hold, and how many a call adds.

    What the names of dimensions say is believed as far as every recorded run bears it out.

    Raises:
        ConfigError: Caches have lengths of their own, or it is not known how much they grow.
    """
    past_dim, *others = dict.fromkeys(_dim(cache, manifest) for cache in caches)
    runs = [_Run.of(vector_set, caches) for vector_set in vectors]
    # Two names may be of one size: an exporter that was given one for keys and one for values.
    differ = [name for name in others if any(r.sizes[name] != r.sizes[past_dim] for r in runs)]
    if differ or any(run.differs for run in runs):
        raise ConfigError(
            f"caches have lengths of their own ({', '.join([past_dim, *differ])}), and all are"
            " written at one place.",
            hint="--cache concatenated leaves them as they are.",
        )
    new = _new_length(caches[0], manifest, past_dim, runs)
    pasts = {cache.past.name for cache in caches}
    given = [info.shape for info in manifest.inputs if info.name not in pasts]
    dims = [dim for shape in given for dim in map(parsed, shape) if dim is not None]
    # Sizes of other inputs may tell: a mask over cached and new tokens does.
    if any(dim.name == past_dim and dim.multiplier == 1 for dim in dims):
        return CacheLengths(past_dim, past_dim, new)
    totals = [run.total for run in runs]
    # One run alone may agree by chance.
    for dim in dims if len(set(totals)) > 1 else ():
        if dim.is_plain and totals == [run.sizes.get(dim.name) for run in runs]:
            return CacheLengths(past_dim, f"{dim.name} - {new}", new)
    # A name that no other tensor has and no dimension.
    taken = {info.name for info in (*manifest.inputs, *manifest.outputs)}
    taken |= {dim.name for dim in dims}
    tells = PAST_LENGTH
    while tells in taken:
        tells = f"filled_{tells}"
    return CacheLengths(past_dim, tells, new, tells)


class _Run(NamedTuple):
    """The sizes of one recorded run: cached tokens before and after; `differs`: not all agree."""

    sizes: Mapping[str, int]
    past: int
    total: int
    differs: bool

    @classmethod
    def of(cls, vectors: VectorSet, caches: Sequence[GrowingCache]) -> _Run:
        lengths = [
            (
                vectors.inputs[cache.past.name or ""].shape[cache.axis],
                vectors.outputs[cache.present.name or ""].shape[cache.axis],
            )
            for cache in caches
        ]
        return cls(vectors.sizes, *lengths[0], differs=len(set(lengths)) > 1)


def _is_input(value: ir.Value) -> bool:
    return value.is_graph_input() and not value.is_initializer()


def _dim(cache: GrowingCache, manifest: Manifest) -> str:
    """Return the dimension of a cache's tokens.

    Raises:
        ConfigError: It is no dimension of its own.
    """
    (spec,) = (info for info in manifest.inputs if info.name == cache.past.name)
    text = str(spec.shape[cache.axis])
    if text not in manifest.dims:
        raise ConfigError(
            f"input '{spec.name}' has '{text}' cached tokens, expected a dimension of its own."
        )
    return text


def _why_other(model: ir.Model, name: str, manifest: Manifest, dims: set[str]) -> str | None:
    """Say how an output extends a cache that was not found; None if it does not."""
    (value,) = (output for output in model.graph.outputs if output.name == name)
    pasts = {
        info.name: info.shape for info in manifest.inputs if dims & set(map(str, info.shape))
    } or {info.name: info.shape for info in manifest.inputs if len(info.shape) > 2}
    for node, is_joined_again in _joins_before(value):
        sources = [None if value is None else _source(value) for value in node.inputs]
        names = [None if source is None else source.name for source in sources]
        known = [name for name in names if name in pasts]
        if not known:
            continue
        if names[0] not in pasts:
            return f"new tokens are joined before those of '{known[0]}'"
        if is_joined_again:
            return f"the caches of several layers are one tensor, '{known[0]}'"
        if len(node.inputs) > 2:
            return f"'{known[0]}' is joined with more than new tokens"
        return f"'{known[0]}' is changed before new tokens are joined, or what is joined is"
    return None


def _joins_before(value: ir.Value, *, again: bool = False) -> Iterator[tuple[ir.Node, bool]]:
    """Yield each Concat behind which only views and Concats lead to a value, and whether any
    Concats do."""
    node = value.producer()
    if node is not None and node.op_type == "Concat":
        yield node, again
        for operand in node.inputs:
            if operand is not None:
                yield from _joins_before(operand, again=True)
    elif node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        yield from _joins_before(node.inputs[0], again=again)


_VIEWS = frozenset(
    ("Cast", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)


def _source(value: ir.Value) -> ir.Value | None:
    """Return the input that a value views; None for other values."""
    node = value.producer()
    if node is None:
        return value if _is_input(value) else None
    if node.op_type in _VIEWS and node.inputs[0] is not None:
        return _source(node.inputs[0])
    return None


def _new_length(
    cache: GrowingCache, manifest: Manifest, past_dim: str, runs: Sequence[_Run]
) -> str | int:
    (spec,) = (output for output in manifest.outputs if output.name == cache.present.name)
    text = str(spec.shape[cache.axis])
    added = [run.total - run.past for run in runs]
    terms = [term for term in re.split(r"\s*\+\s*", text) if term != past_dim]
    if len(terms) == 1:
        (term,) = terms
        # As the exporter says: `past + seq`, or `past + 1`.
        if term.isdecimal() and set(added) == {int(term)}:
            return int(term)
        if term in manifest.dims and added == [run.sizes[term] for run in runs]:
            return term
    fitting = [
        name
        for name in manifest.dims
        if name != past_dim and added == [run.sizes.get(name) for run in runs]
    ]
    if len(fitting) == 1 and len(set(added)) > 1:
        return fitting[0]
    raise ConfigError(
        f"output '{spec.name}' has '{text}' tokens, and '{past_dim}' were cached: it is not"
        " known how many are new.",
        hint="Make the number of new tokens a dimension of an input (--dynamic), or fixed.",
    )


def parsed(dim: str | int | None) -> DimExpr | None:
    """Return a dimension that is linear in one name; None for any other."""
    try:
        return DimExpr.parse(dim, place="an input") if isinstance(dim, str) else None
    except ConfigError:
        return None
