"""Masks of valid tokens that hold real padding, for inputs that are made or brought to a size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.arrays import dtype_name, to_numpy, to_torch
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package.interface import marks_padding, mask_input
from moh_deploy.system.npz import BoolArray
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.reference.valid_tokens import (
    ValidTokens,
    is_additive,
    mask_like,
    valid_tokens,
)

Side = Literal["left", "right"]

SIDES: tuple[Side, ...] = ("left", "right")
TURNS: tuple[Side | None, ...] = (*SIDES, None)


def padded_mask(
    shape: Sequence[int], dtype: torch.dtype, sides: Sequence[Side | None] = TURNS
) -> torch.Tensor:
    """Return a mask [batch, tokens] of 1 for valid tokens and 0 for padding.

    Samples take turns: the first is padded on the left, as generating models take them, the second
    on the right, the third not at all. Each has a number of its own, and a valid token.

    Args:
        sides: Where the samples are padded, by turns; None for nowhere.
    """
    batch, tokens = shape
    mask = torch.ones(batch, tokens)
    for sample in range(batch if tokens > 1 else 0):
        side = sides[sample % len(sides)]
        padding = 1 + (tokens // 3 + sample) % (tokens - 1)
        if side == "left":
            mask[sample, :padding] = 0
        elif side == "right":
            mask[sample, tokens - padding :] = 0
    return mask.to(dtype)


def is_padded(item: ModelInput, side: Side) -> bool:
    """Tell whether a sample of a mask has valid tokens, and padding on a side."""
    valid = tokens_of(item).mask
    end = valid[:, 0] if side == "left" else valid[:, -1]
    return bool((~end & valid.any(1)).any())


def named_tokens(inputs: Sequence[ModelInput], name: str, *, made: bool) -> tuple[ModelInput, ...]:
    """Return the inputs, one of them marked as the mask of valid tokens.

    Args:
        inputs: The model's.
        name: Of that one; `not` before it: it is 1 for padding.
        made: Its values were made up: they become those of a mask, with padding.

    Raises:
        ConfigError: There is no such input, or it is no mask.
    """
    names, wanted = [item.name for item in inputs], mask_input(name)
    if wanted not in names:
        raise ConfigError(
            f"valid_tokens is '{name}', but the model has {', '.join(names)}.",
            hint=did_you_mean(wanted, names) or None,
        )
    found: list[ModelInput] = []
    for item in inputs:
        if item.name == wanted:
            item = replace(item, marks_padding=marks_padding(name))
            shape = item.value.shape
            if made and (len(shape) == 2 or is_additive(dtype_name(item.value.dtype), shape)):
                item = replace(item, value=_padded_like(item))
            tokens_of(item)  # refuses what is no mask
            item = replace(item, says_valid=True)
        found.append(item)
    return tuple(found)


def tokens_of(item: ModelInput) -> ValidTokens:
    """Return the tokens that an input says are valid.

    Raises:
        ConfigError: It is no mask, see `valid_tokens`.
    """
    dims = [item.dims.get(axis, size) for axis, size in enumerate(item.value.shape)]
    mask = to_numpy(item.value)
    found = valid_tokens(item.mask_name, mask, dims, where="the example inputs")
    return replace(found, new_tokens=item.new_tokens)


def with_padding(
    inputs: Sequence[ModelInput], sides: Sequence[Side | None]
) -> tuple[ModelInput, ...]:
    """Return inputs with padding in the mask that says which tokens are valid, if there is one.

    Tokens that are padding already stay that: what a model makes of their ids may be no number.
    """
    return tuple(
        replace(item, value=_padded_like(item, sides, tokens_of(item).mask))
        if item.says_valid
        else item
        for item in inputs
    )


def without_padding(inputs: Sequence[ModelInput]) -> tuple[ModelInput, ...]:
    """Return inputs with valid tokens of the same sample in the place of its padding, and a mask
    that says so; the same inputs where no input but the mask is [batch, tokens, ...].
    """
    mask = next((item for item in inputs if item.says_valid), None)
    tokens = None if mask is None else tokens_of(mask)
    held = [
        item
        for item in inputs
        if tokens
        and item is not mask
        and tuple(item.dims.get(i, n) for i, n in enumerate(item.value.shape))[:2] == tokens.dims
    ]
    if tokens is None or not held:
        return tuple(inputs)
    places = torch.arange(tokens.mask.shape[1]).repeat(len(tokens.mask), 1)
    for row, valid in zip(places, to_torch(tokens.mask), strict=True):
        known = row[valid] if valid.any() else row
        row[~valid] = known[torch.arange(int((~valid).sum())) % len(known)]
    samples = torch.arange(len(places))[:, None]
    full = {id(item): item.value[samples, places] for item in held}
    full[id(mask)] = _padded_like(mask, [None]) if mask else places
    return tuple(replace(item, value=full.get(id(item), item.value)) for item in inputs)


def with_zeros(inputs: Sequence[ModelInput], side: Side) -> tuple[ModelInput, ...]:
    """Return inputs with 0 on a side of those that may be masks: see `may_be_mask`."""
    masks = tuple(replace(item, says_valid=may_be_mask(item)) for item in inputs)
    return tuple(replace(item, says_valid=False) for item in with_padding(masks, [side]))


def may_be_mask(item: ModelInput) -> bool:
    """Tell whether an input is [batch, tokens] of 0 and 1, with a 1 in each sample."""
    value = item.value
    return value.ndim == 2 and bool(((value == 0) | (value == 1)).all() and value.any(1).all())


def _padded_like(
    item: ModelInput,
    sides: Sequence[Side | None] = TURNS,
    valid: BoolArray | None = None,
) -> torch.Tensor:
    """Return a mask of the same form and meaning, with padding.

    Args:
        valid: The tokens [batch, tokens] that may be valid; None for all. A sample that
            is all padding has all of them.
    """
    mask = item.value
    made = padded_mask((mask.shape[0], mask.shape[-1]), torch.bool, sides)
    rows: BoolArray = to_numpy(made).astype(np.bool_)
    if valid is not None:
        both = rows & valid
        rows = np.where(both.any(1, keepdims=True), both, valid)
    return to_torch(mask_like(rows != item.marks_padding, to_numpy(mask)))
