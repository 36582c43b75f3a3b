"""Leave padding out of comparisons: its results are undefined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, TensorInfo, VectorSet
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.reference.differences import ShownIndex

# Read masks that are added to attention's scores as masks of valid tokens, and make them.

HIDES = -1e4
"""What is added to the score of a hidden key is no larger: exp() of it is 0 in every
dtype."""


def is_additive(dtype: str, axes: Sequence[object]) -> bool:
    """Tell whether a mask of so many axes is one that is added to scores, by its dtype."""
    return len(axes) > 2 and "float" in dtype


def valid_keys(mask: Array) -> BoolArray | str:
    """Return which keys a mask [batch, ..., keys] leaves open, bool [batch, keys].

    Returns:
        The reason where it does not tell which tokens are valid: it holds something else than 0 and
        numbers that hide, or hides different keys from different queries, as a causal one does.
    """
    wide = mask.astype(np.float64)
    is_open = wide == 0
    if not (is_open | (wide <= HIDES)).all():
        other = wide[~is_open & ~(wide <= HIDES)][0]
        return f"it holds {other:g}, and not only 0 (valid) and -inf or the lowest number (padding)"
    by_query = is_open.reshape(len(mask), math.prod(mask.shape[1:-1]), mask.shape[-1])
    if not by_query.shape[1]:
        return "it has no query"
    if (by_query != by_query[:, :1]).any():
        return (
            "it hides other keys from one query than from another: give the mask without causality"
        )
    return np.asarray(by_query[:, 0])


def mask_like(valid: BoolArray, like: Array, between: Sequence[int] | None = None) -> Array:
    """Return which tokens [batch, tokens] are valid in the form of a mask: of 0 and 1, or as one
    that is added.

    Args:
        between: Sizes of the axes between batch and keys; None for those of `like`.
    """
    if like.ndim == 2:
        return valid.astype(like.dtype)
    middle = like.shape[1:-1] if between is None else tuple(between)
    made = np.zeros((len(valid), *middle, valid.shape[-1]), like.dtype)
    # -inf where the mask has it: a row without a key is NaN then, and not with a finite number.
    wide = like.astype(np.float64)
    lowest = -np.inf if np.isneginf(wide).any() else min(float(wide.min(initial=0.0)), HIDES)
    apart = np.expand_dims(valid, tuple(range(1, like.ndim - 1)))
    return np.where(apart, made, np.asarray(lowest).astype(like.dtype))


_Dim: TypeAlias = int | str


@dataclass(frozen=True)
class ValidTokens:
    """A mask of the tokens of one run that count."""

    name: str  # The input, or member of the user's file, that says so; see `token_mask`
    mask: BoolArray  # [B, S]
    # How the model calls its two axes; None if it has no such input.
    dims: tuple[_Dim, ...] | None = None
    # The dimension of the tokens that are the last ones of these; None where it is their own.
    new_tokens: str | None = None

    def own_dims(self, dims: Sequence[_Dim], shape: Sequence[int]) -> tuple[_Dim, ...]:
        """Return the names of a value's axes, as long as the mask's where they are of its tokens.

        `past + seq` is that, as long as the mask is, where `seq` are its last tokens.
        """
        if self.dims is None or self.new_tokens is None or len(dims) != len(shape):
            return tuple(dims)
        parts = [str(dim).replace(" ", "").split("+") for dim in dims]
        return tuple(
            self.dims[1]
            if len(names) > 1 and self.new_tokens in names and size == self.mask.shape[1]
            else dim
            for dim, names, size in zip(dims, parts, shape, strict=True)
        )

    def of_axes(self, dims: Sequence[_Dim], shape: Sequence[int]) -> ValidTokens:
        """Return the mask of a value's tokens: the last ones where its axes are those of a call."""
        for dim, size in zip(dims, shape, strict=False):
            if dim == self.new_tokens:
                return self.newest(size)
        return self

    def newest(self, count: int) -> ValidTokens:
        """Return the mask of the last tokens."""
        first = self.mask.shape[1] - count
        batch = (self.dims or (None,))[0]
        dims = None if batch is None or self.new_tokens is None else (batch, self.new_tokens)
        return ValidTokens(self.name, self.mask[:, first:], dims)


class Compared(NamedTuple):
    """The elements of a value that are compared: those of valid tokens, of both sides."""

    got: Array | None
    reference: Array
    place: ShownIndex


@dataclass(frozen=True)
class TokenView:
    """The elements of each value that are compared. Without entries, all are."""

    # Name of an output, or of a layer's gates, to what is compared of it.
    selections: Mapping[str, _Selection] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # What could not be left out

    def of(self, name: str, got: Array | None, reference: Array) -> Compared:
        """Select the elements that are compared; all, where the shapes differ."""
        # Shapes that differ are reported as such, and not hidden by a selection that does not fit.
        chosen = self.selections.get(name)
        if chosen is None or got is None or got.shape != reference.shape:
            return Compared(got, reference, list)
        return Compared(chosen.of(got), chosen.of(reference), chosen.place)

    def margins(self, name: str, got: Array | None, reference: Array, margins: Array) -> Array:
        """Return the margins [B, S] of the gates' tokens that are compared."""
        chosen = self.selections.get(name)
        fits = got is not None and got.shape == reference.shape
        if chosen is None or not fits or margins.shape != reference.shape[:-1]:
            return margins
        return chosen.of(margins)

    def places(self, name: str, shape: Sequence[int]) -> BoolArray:
        """Return which elements of a value are compared, in its shape."""
        chosen = self.selections.get(name)
        if chosen is None or not chosen.fits(shape):
            return np.ones(tuple(shape), np.bool_)
        return over_axes(chosen.mask, chosen.axes, shape)

    def also(self, names: Mapping[str, str]) -> TokenView:
        """Return the view that knows values by other names, too: other name to name."""
        known = self.selections
        renamed = {other: known[name] for other, name in names.items() if name in known}
        return TokenView({**known, **renamed}, self.notes)

    def select(self, results: Mapping[str, Array]) -> dict[str, Array]:
        """Return of all results what is compared."""
        fitting = {
            name: chosen
            for name, chosen in self.selections.items()
            if name in results and chosen.fits(results[name].shape)
        }
        return {**results, **{name: chosen.of(results[name]) for name, chosen in fitting.items()}}


@dataclass(frozen=True)
class _Selection:
    """A selection of the elements of an array by a mask over some axes."""

    axes: tuple[int, ...]  # Those that the mask is over, ascending
    mask: BoolArray  # Which of them count

    def fits(self, shape: Sequence[int]) -> bool:
        """Tell whether an array of this shape has the axes of the mask."""
        sizes = [shape[axis] for axis in self.axes if axis < len(shape)]
        return tuple(sizes) == self.mask.shape

    def of(self, array: Array) -> Array:
        """Return the selected elements: [selected, ...], with the other axes behind."""
        found: Array = np.moveaxis(array, self.axes, range(len(self.axes)))[self.mask]
        return found

    def place(self, at: tuple[int, ...]) -> list[int]:
        """Return the index in the whole array."""
        # Ascending axes: each is inserted where the ones before it have already made room.
        index = list(at[1:])
        for axis, number in zip(self.axes, np.argwhere(self.mask)[at[0]], strict=True):
            index.insert(axis, int(number))
        return index


EVERY_TOKEN = TokenView()


def valid_tokens(name: str, mask: Array, dims: Sequence[_Dim] | None, *, where: str) -> ValidTokens:
    """Read a mask: not 0 is valid; of one that is added to scores, [batch, ..., keys], 0 is.

    Args:
        name: Of the mask; `not` before it: 0 is valid.
        where: The run that it belongs to, for messages.

    Raises:
        ConfigError: It is neither of 0 and 1 in two axes, nor one that is added and hides the same
            keys from every query.
    """
    got = f"{where}: '{mask_input(name)}' is {mask.dtype}{list(mask.shape)}"
    if is_additive(mask.dtype.name, mask.shape) and not marks_padding(name):
        keys = valid_keys(mask)
        if isinstance(keys, str):
            raise ConfigError(
                f"{got}, expected a mask of valid tokens: [batch, tokens] of 0 and 1, or"
                f" [batch, ..., keys] to be added to scores; {keys}.",
                hint="Store which tokens are valid, [batch, tokens], in the npz file under another"
                " name, and give that.",
            )
        return ValidTokens(name, keys, None if dims is None else (dims[0], dims[-1]))
    if mask.ndim != 2:
        raise ConfigError(
            f"{got}, expected a mask of valid tokens with the two axes [batch, tokens]."
        )
    # An additive mask, 0 and -inf, means the opposite: read as it is it would drop every real
    # token.
    padding = int(marks_padding(name))
    if not np.isin(mask, (0, 1)).all():
        raise ConfigError(
            f"{got} and holds other values than {padding} (padding) and {1 - padding} (valid).",
            hint="A mask that is added to scores has 0 for valid tokens: store mask == 0 in the npz"
            " file under another name, and give that.",
        )
    return ValidTokens(name, mask != padding, None if dims is None else (dims[0], dims[1]))


def token_view(valid: ValidTokens, manifest: Manifest, expected: VectorSet) -> TokenView:
    """Find the elements of outputs and gates that belong to valid tokens."""
    shapes = {name: array.shape for name, array in expected.outputs.items()}
    caches = _buffer_selections(valid, manifest, shapes)
    others = [output for output in manifest.outputs if output.name not in caches]
    outputs = output_view(valid, others, shapes)
    found, notes = {**outputs.selections, **caches}, [*outputs.notes]
    for info in manifest.inputs:
        # Layers have the tokens of the call.
        if valid.new_tokens in info.shape and info.name in expected.inputs:
            valid = valid.of_axes(info.shape, expected.inputs[info.name].shape)
            break
    for layer, gates in zip(manifest.layers, expected.gates, strict=False):
        # Layers over windows or pooled tokens have other axes than the mask.
        if gates.shape[:2] == valid.mask.shape:
            found[layer.gates] = _Selection((0, 1), valid.mask)
            continue
        notes.append(
            f"All tokens of layer '{layer.path}' are compared: '{valid.name}' has other ones."
        )
    return TokenView(found, tuple(notes))


def _buffer_selections(
    valid: ValidTokens, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, _Selection]:
    """Find the places of caches that hold no padding, where the mask is of old and new tokens.

    A buffer has a place for each of these tokens, in their order. Places behind them stay as they
    were given, and are compared.
    """
    if manifest.caches is None or valid.new_tokens != manifest.caches.new_length:
        return {}
    found = {}
    batch, tokens = valid.mask.shape
    for buffer in manifest.caches.buffers:
        shape = shapes.get(buffer.present, ())
        if shape and shape[0] == batch and shape[buffer.axis] >= tokens:
            mask = np.ones((batch, shape[buffer.axis]), np.bool_)
            mask[:, :tokens] = valid.mask
            found[buffer.present] = _Selection((0, buffer.axis), mask)
    return found


def output_view(
    valid: ValidTokens, outputs: Sequence[TensorInfo], shapes: Mapping[str, tuple[int, ...]]
) -> TokenView:
    """Find the elements of outputs that belong to valid tokens."""
    found: dict[str, _Selection] = {}
    notes: list[str] = []
    of_row = np.asarray(valid.mask.any(axis=1))  # [B]: samples that have a valid token
    for spec in outputs:
        shape = shapes.get(spec.name)
        if shape is None:
            continue
        spec = replace(spec, shape=valid.own_dims(spec.shape, shape))
        tokens = valid.of_axes(spec.shape, shape)
        axes = _token_axes(spec, shape, tokens)
        if axes is not None:
            # [B, S], or [S, B] for outputs with tokens first.
            mask = tokens.mask if axes[0] < axes[1] else tokens.mask.T
            selection = _Selection(tuple(sorted(axes)), mask)
            if selection.fits(shape):
                found[spec.name] = selection
            continue
        # Equal by chance, maybe: [B, classes] with as many classes as tokens. Comparing too much is
        # safe.
        if shape[:2] == valid.mask.shape:
            notes.append(
                f"All of output '{spec.name}' is compared: its second axis has as many elements as"
                f" '{valid.name}', but may be another one."
            )
        # [B]: an output without tokens, pooled say, is of whole samples. What is left of a sample
        # without valid tokens is ignored, too.
        has_rows = bool(shape) and shape[0] == len(of_row) and _same(spec, 0, valid)
        if not of_row.any():
            # A mask without axes selects nothing.
            found[spec.name] = _Selection((), np.zeros((), np.bool_))
        elif has_rows and not of_row.all():
            found[spec.name] = _Selection((0,), of_row)
    return TokenView(found, tuple(notes))


def inner_places(valid: ValidTokens, dims: Sequence[_Dim], shape: Sequence[int]) -> BoolArray:
    """Return which elements of an inner value are of valid tokens alone: of scores [B, H, S, S],
    those of a valid query and a valid key.

    Args:
        dims: How the model calls its axes.
        shape: Of the value.

    Returns:
        Bool, in that shape; all of a value whose axes are not those of the mask, for certain.
    """
    places = np.ones(tuple(shape), np.bool_)
    dims = valid.own_dims(dims, shape)
    valid = valid.of_axes(dims, shape)
    batch, tokens = valid.dims or (0, 0)
    samples = [axis for axis, dim in enumerate(dims) if dim == batch]
    of_tokens = [axis for axis, dim in enumerate(dims) if dim == tokens]
    # A number may be a size of something else: it has to be there once.
    named = isinstance(tokens, str) or len(of_tokens) == 1
    if len(samples) != 1 or batch == tokens or not named or len(dims) != len(shape):
        return places
    for axis in of_tokens:
        mask = valid.mask if samples[0] < axis else valid.mask.T
        selection = _Selection(tuple(sorted((samples[0], axis))), mask)
        if selection.fits(shape):
            places &= over_axes(mask, selection.axes, shape)
    return places


def over_axes(mask: BoolArray, axes: Sequence[int], shape: Sequence[int]) -> BoolArray:
    """Return a mask of all elements of an array: True where its mask over some axes is."""
    sizes = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
    return np.broadcast_to(mask.reshape(sizes), tuple(shape))


def _token_axes(
    spec: TensorInfo, shape: tuple[int, ...], valid: ValidTokens
) -> tuple[int, int] | None:
    """Return where batch and tokens are; None if the output has no tokens, or it is not certain.

    Axes that the model calls as those of the mask are; else the first two of [B, S, D], and of
    [B, S] if the second is dynamic.
    """
    # Names of dynamic dimensions tell for certain, whatever the sizes of this run are.
    if valid.dims is not None and all(isinstance(dim, str) for dim in valid.dims):
        places = [
            [axis for axis, dim in enumerate(spec.shape) if dim == wanted] for wanted in valid.dims
        ]
        # An axis that is there twice, [B, S, S], has no one place of tokens.
        (batch, *more), (tokens, *others) = (place or [-1] for place in places)
        certain = batch >= 0 and tokens >= 0 and not more and not others and batch != tokens
        return (batch, tokens) if certain else None
    # Without names, sizes have to do, and only in the forms that are common.
    if shape[:2] != valid.mask.shape or not (_same(spec, 0, valid) and _same(spec, 1, valid)):
        return None
    is_dynamic = any(isinstance(dim, str) for dim in spec.shape[1:2])
    return (0, 1) if len(shape) == 3 or is_dynamic else None


def _same(spec: TensorInfo, axis: int, valid: ValidTokens) -> bool:
    """Tell whether an axis is called as that of the mask, as far as that is known."""
    # A reference may have more axes than the model says of its output, which is told elsewhere.
    return valid.dims is None or spec.shape[axis : axis + 1] == valid.dims[axis : axis + 1]
