"""Masks that are made hold padding on both sides, and a valid token in each sample."""

import pytest
import torch

from moh_deploy.frontend.inputs.padding import (
    is_padded,
    may_be_mask,
    padded_mask,
    with_padding,
    with_zeros,
    without_padding,
)
from moh_deploy.frontend.inputs.sizes import SizeTrials
from moh_deploy.frontend.load.model import ModelInput


def test_samples_are_padded_left_right_and_not_at_all_by_turns():
    assert padded_mask((4, 5), torch.int64).tolist() == [
        [0, 0, 1, 1, 1],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("tokens", [1, 2, 3, 37])
def test_each_sample_has_a_valid_token(batch: int, tokens: int):
    mask = padded_mask((batch, tokens), torch.bool)
    assert mask.shape == (batch, tokens)
    assert mask.any(1).all()
    item = ModelInput("mask", mask)
    assert is_padded(item, "left") == (tokens > 1)
    assert is_padded(item, "right") == (tokens > 1 and batch > 1)


def a_mask() -> list[ModelInput]:
    return [ModelInput("mask", torch.ones(2, 4), {0: "batch", 1: "seq"}, says_valid=True)]


def test_mask_is_made_anew_at_another_size():
    resized, _ = expect(SizeTrials(a_mask(), list).at({"batch": 3, "seq": 5}))
    assert torch.equal(resized[0].value, padded_mask((3, 5), torch.float32))


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float32).min])
def test_mask_that_is_added_is_made_anew_in_its_own_form(lowest: float):
    mask = torch.zeros(2, 1, 4, 4)
    mask[1, :, :, -1] = lowest
    dims = {0: "batch", 2: "seq", 3: "seq"}
    item = ModelInput("mask", mask, dims, says_valid=True)
    resized, _ = expect(SizeTrials([item], list).at({"batch": 3, "seq": 5}))
    wanted = torch.where(padded_mask((3, 5), torch.bool)[:, None, None], 0.0, lowest)
    assert torch.equal(resized[0].value, wanted.expand(3, 1, 5, 5))


def test_padding_is_on_the_right_where_the_left_makes_valid_tokens_nan():
    def cumulative(arguments: list[torch.Tensor]) -> list[torch.Tensor]:
        # A token that no earlier one is valid for gets 0/0; here, all behind it do.
        (mask,) = arguments
        return [(mask / mask[:, :1]).cumsum(1)]

    resized, outputs = expect(SizeTrials(a_mask(), cumulative).at({"seq": 5}))
    assert not is_padded(resized[0], "left")
    assert is_padded(resized[0], "right")
    assert outputs[0].isfinite().all()


def test_mask_is_that_of_the_example_where_the_model_takes_no_padding():
    def strict(arguments: list[torch.Tensor]) -> list[torch.Tensor]:
        if bool((arguments[0] == 0).any()):
            raise ValueError("padding")
        return arguments

    resized, _ = expect(SizeTrials(a_mask(), strict).at({"seq": 5}))
    assert resized[0].value.tolist() == [[1.0] * 5] * 2


def a_padded_batch() -> list[ModelInput]:
    """Return ids in which 0 is padding, their mask, and a value for each sample."""
    dims = {0: "batch", 1: "seq"}
    ids = torch.tensor([[5, 9, 31, 7], [60, 8, 0, 0], [0, 0, 0, 44]])
    return [
        ModelInput("ids", ids, dims),
        ModelInput("mask", (ids != 0).float(), dims, says_valid=True),
        ModelInput("scale", torch.ones(3, 2), {0: "batch"}),
    ]


@pytest.mark.parametrize("sizes", [{}, {"seq": 3}, {"batch": 5, "seq": 11}])
def test_padding_of_the_example_never_becomes_valid(sizes: dict[str, int]):
    """A router may be NaN for the embedding of padding, which is 0."""
    made, _ = expect(SizeTrials(a_padded_batch(), list).at(sizes))
    ids, mask, scale = (item.value for item in made)
    assert (ids[mask != 0] != 0).all()
    assert not mask.all()
    assert scale.equal(torch.ones(len(ids), 2))


def test_valid_tokens_stand_in_for_padding():
    ids, mask, scale = without_padding(a_padded_batch())
    assert ids.value.tolist() == [[5, 9, 31, 7], [60, 8, 60, 8], [44] * 4]
    assert mask.value.tolist() == [[1.0] * 4] * 3
    assert scale.value.equal(torch.ones(3, 2))


def test_padding_stays_where_nothing_can_stand_in_for_it():
    """As in a cache of keys, whose tokens have other axes."""
    (mask,) = without_padding([a_padded_batch()[1]])
    assert mask.value.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]
    (mask,) = with_padding([mask], ["right"])
    assert mask.value.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def test_what_may_be_a_mask_is_zero_on_a_side():
    ids, mask, scale = a_padded_batch()
    kinds = ModelInput("kinds", torch.ones(3, 4, dtype=torch.int32), {0: "batch", 1: "seq"})
    assert [may_be_mask(item) for item in (ids, mask, scale, kinds)] == [False, True, True, True]
    same, zeroed = with_zeros([ids, kinds], "left")
    assert same.value.equal(ids.value)
    assert zeroed.value.dtype == torch.int32
    assert zeroed.value.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]]
    assert not zeroed.says_valid


def expect(
    found: tuple[tuple[ModelInput, ...], list[torch.Tensor]] | Exception,
) -> tuple[tuple[ModelInput, ...], list[torch.Tensor]]:
    assert not isinstance(found, Exception)
    return found
