"""Masks of valid tokens that hold real padding, for inputs that are made or brought to a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.arrays import dtype_name, to_numpy, to_torch
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.additive_mask import is_additive, mask_like
from moh_deploy.validate.valid_tokens import ValidTokens, valid_tokens

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
    """Return inputs of which one says which tokens are valid.

    Args:
        inputs: The model's.
        name: Of that one.
        made: Its values were made up: they become those of a mask, with padding.

    Raises:
        ConfigError: There is no such input, or it is no mask.
    """
    names = [item.name for item in inputs]
    if name not in names:
        raise ConfigError(
            f"valid_tokens is '{name}', but the model has {', '.join(names)}.",
            hint=did_you_mean(name, names) or None,
        )
    return tuple(_as_mask(item, made=made) if item.name == name else item for item in inputs)


def tokens_of(item: ModelInput) -> ValidTokens:
    """Return the tokens that an input says are valid.

    Raises:
        ConfigError: It is no mask, see `valid_tokens`.
    """
    dims = [item.dims.get(axis, size) for axis, size in enumerate(item.value.shape)]
    return valid_tokens(item.name, to_numpy(item.value), dims, where="the example inputs")


def with_padding(
    inputs: Sequence[ModelInput], sides: Sequence[Side | None]
) -> tuple[ModelInput, ...]:
    """Return inputs with padding in the mask that says which tokens are valid, if there is one."""
    return tuple(
        replace(item, value=_padded_like(item.value, sides)) if item.says_valid else item
        for item in inputs
    )


def _padded_like(mask: torch.Tensor, sides: Sequence[Side | None] = TURNS) -> torch.Tensor:
    """Return a mask of the same form, with padding."""
    rows = padded_mask((mask.shape[0], mask.shape[-1]), torch.bool, sides)
    return to_torch(mask_like(to_numpy(rows).astype(np.bool_), to_numpy(mask)))


def _as_mask(item: ModelInput, *, made: bool) -> ModelInput:
    if made and (
        item.value.ndim == 2 or is_additive(dtype_name(item.value.dtype), item.value.shape)
    ):
        item = replace(item, value=_padded_like(item.value))
    tokens_of(item)
    return replace(item, says_valid=True)
