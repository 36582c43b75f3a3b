from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.system.npz import BFLOAT16, Array
from moh_deploy.validate.reference.valid_tokens import mask_like, valid_keys

VALID = np.array([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BFLOAT16])
@pytest.mark.parametrize("lowest", [-np.inf, -30000.0])
@pytest.mark.parametrize("between", [(), (1,), (4, 5), (1, 3)])
def test_mask_that_is_made_says_what_it_was_made_of(
    dtype: type, lowest: float, between: tuple[int, ...]
):
    like = np.full((1, *between, 7), lowest).astype(dtype)
    if like.ndim == 2:
        assert (mask_like(VALID, like) == VALID.astype(dtype)).all()
        return
    made = mask_like(VALID, like)
    assert (made.shape, made.dtype) == ((2, *between, 3), like.dtype)
    assert (made.astype(np.float64).min() == like.astype(np.float64).min()).all()
    found = valid_keys(made)
    assert isinstance(found, np.ndarray)
    assert (found == VALID).all()


@pytest.mark.parametrize("shape", [(0, 1, 1, 3), (2, 1, 3, 0)])
def test_mask_may_be_empty(shape: tuple[int, ...]):
    like = np.zeros(shape, np.float32)
    found = valid_keys(like)
    assert isinstance(found, np.ndarray)
    assert found.shape == (shape[0], shape[-1])
    assert mask_like(found, like).shape == shape


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.full((1, 1, 1, 2), 0.5), "it holds 0.5, and not only 0"),
        (np.full((1, 1, 1, 2), np.nan), "it holds nan, and not only 0"),
        (np.triu(np.full((1, 1, 3, 3), -np.inf), 1), "it hides other keys from one query than"),
        (np.zeros((2, 1, 0, 3)), "it has no query"),
    ],
)
def test_mask_that_does_not_tell_which_tokens_are_valid(mask: Array, reason: str):
    found = valid_keys(np.nan_to_num(mask, nan=np.nan, neginf=-np.inf))
    assert isinstance(found, str)
    assert found.startswith(reason)
