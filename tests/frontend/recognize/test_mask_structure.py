"""Masks become attributes and short inputs where what they compute has a structure."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import commit, insert
from moh_deploy.frontend.rewrite.masks import mask_trials
from tests.frontend.recognize.masked_layers import (
    CASES,
    HEAD_DIM,
    HEADS,
    MaskedModel,
    StaticCache,
)
from tests.frontend.traced import traced

SIZES = ((2, 7, 3), (3, 23, 1), (2, 50, 10))  # batch, seq, past
PADDINGS = ("none", "left", "right")


def inputs(batch: int, seq: int, past: int, padding: str) -> dict[str, Tensor]:
    """Return inputs of MaskedModel."""
    torch.manual_seed(seq)
    valid = torch.ones(batch, past + seq, dtype=torch.long)
    padded = 1 + seq // 3
    if padding == "left":
        valid[0, : past + padded] = 0
    elif padding == "right":
        valid[-1, -padded:] = 0
    ids = torch.randint(2, 20, (batch, seq))
    ids[:, 2::5] = 2
    ids[:, 4::7] = 1
    return {
        "ids": ids,
        "valid": valid,
        "padding": valid[:, past:] == 0,
        "positions": torch.arange(seq).repeat(batch, 1),
        "documents": torch.arange(seq).repeat(batch, 1) // 3,
        "lengths": torch.arange(batch) % seq + 1,
        "cache": torch.randn(batch, HEADS, past, HEAD_DIM),
    }


class Masked(NamedTuple):
    """A model with every case, rewritten."""

    words: Mapping[str, str | None]
    shapes: Mapping[str, list[tuple[object, ...]]]  # of attn_mask and key_ranges
    errors: Mapping[str, list[float]]  # largest of each run, on tokens that count


@cache
def masked(names: tuple[str, ...]) -> Masked:
    torch.manual_seed(0)
    model = MaskedModel(names).eval()
    dims = {
        "ids": {0: "batch", 1: "seq"},
        "valid": {0: "batch", 1: "total"},
        **{key: {0: "batch", 1: "seq"} for key in ("padding", "positions", "documents")},
        "lengths": {0: "batch"},
        "cache": {0: "batch", 2: "past"},
    }
    example = [
        ModelInput(name, value, dims[name], says_valid=name == "valid")
        for name, value in inputs(2, 7, 3, "none").items()
    ]
    program = traced(model, example)
    trials = mask_trials(program, example)
    rewrites = insert(program, recognize(program), trials)
    names = [rewrite.layer.path.split(".")[1] for rewrite in rewrites]
    shapes = {}
    for name, rewrite in zip(names, rewrites, strict=True):
        assert rewrite.attention is not None, rewrite.reason
        given = rewrite.attention.args[4:7]
        shapes[name] = [tuple(node.meta["val"].shape) for node in given if node is not None]
    module = commit(program, rewrites).module()
    errors: dict[str, list[float]] = {name: [] for name in names}
    for size in SIZES:
        for padding in PADDINGS:
            run = inputs(*size, padding)
            counted = run["valid"][:, size[2] :] != 0
            with torch.no_grad():
                expected = model(**run)
                got = module(*run.values())
            for output, name in zip(got, expected, strict=False):
                errors[name].append(float((output - expected[name])[counted].abs().max()))
    words = {name: rewrite.mask for name, rewrite in zip(names, rewrites, strict=True)}
    return Masked(words, shapes, errors)


# Of each kind one; the others run at night.
OFTEN = (
    *("joined", "opened_rows", "window_of_cache", "prefix_lengths", "documents"),
    *("fused", "each_head", "half_of_all", "padding_flags"),
)
NAMES = [pytest.param(name, marks=() if name in OFTEN else pytest.mark.nightly) for name in CASES]


def masked_with(name: str) -> Masked:
    return masked(OFTEN if name in OFTEN else tuple(CASES))


@pytest.mark.parametrize("name", NAMES)
def test_the_structure_of_a_mask_is_found_or_refused(name: str):
    words, expected = masked_with(name).words[name], CASES[name].words
    assert words is not None
    if expected.startswith("no: "):
        assert words.startswith("no known structure: ")
        assert expected.removeprefix("no: ") in words
    else:
        assert words == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_computes_what_the_original_does(name: str):
    errors = masked_with(name).errors[name]
    assert max(errors) < 2e-6, errors


@pytest.mark.parametrize("name", NAMES)
def test_no_mask_of_queries_and_keys_is_left(name: str):
    """What is left is [B, 1, 1, T] and [B or 1, S, 2], or the mask where it adds to scores."""
    words = CASES[name].words
    is_left = not all(
        shape[1:3] == (1, 1) or shape[2] == 2 for shape in masked_with(name).shapes[name]
    )
    assert is_left == (words.startswith("no: ") or "a bias" in words)


def test_masks_of_a_model_of_one_size_are_read():
    names = ("window_large", "table")
    example = [ModelInput(*item) for item in inputs(2, 23, 3, "left").items()]
    program = traced(MaskedModel(names).eval(), example)
    rewrites = insert(program, recognize(program), mask_trials(program, example))
    assert [rewrite.mask for rewrite in rewrites] == ["causal", "causal"]


@pytest.mark.parametrize("wrong_row", [None, 513])
def test_rows_of_a_large_table_are_all_read(wrong_row: int | None):
    size = 700
    model = StaticCache(size, wrong_row).eval()
    values = (torch.randn(2, 5, HEADS * HEAD_DIM), torch.arange(7, 12))
    caches = torch.randn(2, 2, HEADS, size, HEAD_DIM).unbind()
    dims = ({0: "batch", 1: "seq"}, {0: "seq"}, {0: "batch"}, {0: "batch"})
    names = ("x", "positions", "keys", "values")
    example = [ModelInput(*item) for item in zip(names, (*values, *caches), dims, strict=True)]
    program = traced(model, example)
    (rewrite,) = insert(program, recognize(program), mask_trials(program, example))
    if wrong_row is not None:
        assert rewrite.mask is not None
        assert rewrite.mask.startswith("no known structure: ")
        return
    assert rewrite.mask == "keys up to a position"
    got, *_ = commit(program, [rewrite]).module()(*values, *caches)  # and the caches
    with torch.no_grad():
        torch.testing.assert_close(got, model(*values, *caches), atol=2e-6, rtol=2e-6)
