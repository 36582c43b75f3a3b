from __future__ import annotations

import pytest
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.sizes import resize_inputs
from moh_deploy.frontend.load.model import ModelInput


def test_example_is_repeated_or_cropped() -> None:
    ids = ModelInput("ids", torch.tensor([[1, 2, 3], [4, 5, 6]]), {0: "batch", 1: "seq"})
    (longer,) = resize_inputs([ids], {"batch": 3, "seq": 5})  # no other id is known to be legal
    expected = [[1, 2, 3, 1, 2], [4, 5, 6, 4, 5], [1, 2, 3, 1, 2]]
    assert longer.value.tolist() == expected
    (shorter,) = resize_inputs([ids], {"batch": 1, "seq": 2})
    assert shorter.value.tolist() == [[1, 2]]
    assert longer.dims == ids.dims


def test_no_token_is_repeated_exactly_but_codes() -> None:
    """Where heads choose tokens, equal tokens are a tie that each runtime breaks in its own way."""
    tokens = ModelInput("x", torch.randn(2, 3, 4), {0: "batch", 1: "seq"})
    mask = ModelInput(
        "mask", torch.tensor([[0.0, -torch.inf, torch.finfo(torch.float32).min]]), {1: "seq"}
    )
    bigger, longer = resize_inputs([tokens, mask], {"batch": 4, "seq": 7})
    torch.testing.assert_close(bigger.value[:2, :3], tokens.value, rtol=0, atol=0)
    assert len(bigger.value.flatten().unique()) == bigger.value.numel()
    assert ((bigger.value[2:, :3] / tokens.value) >= 0.75).all()
    assert ((bigger.value[2:, :3] / tokens.value) <= 1).all()
    torch.testing.assert_close(longer.value, mask.value[:, [0, 1, 2, 0, 1, 2, 0]], rtol=0, atol=0)


def test_no_id_is_repeated_in_its_row_or_column() -> None:
    ids = ModelInput("ids", torch.tensor([[5, 9, 31], [7, 60, 31]]), {0: "batch", 1: "seq"})
    for seq in (4, 7, 15):
        (longer,) = resize_inputs([ids], {"batch": 4, "seq": seq})
        assert longer.value[:2, :3].equal(ids.value)
        assert longer.value.dtype == torch.int64
        for line in (*longer.value, *longer.value.T[3:]):
            assert len(line.unique()) == len(line)
        assert (longer.value.min(), longer.value.max()) == (5, 60)


def test_ids_are_repeated_where_the_range_has_no_more() -> None:
    ids = ModelInput("ids", torch.tensor([1, 3, 4]), {0: "seq"})
    (longer,) = resize_inputs([ids], {"seq": 6})
    assert longer.value.tolist() == [1, 3, 4, 2, 3, 4]


def test_masks_kinds_and_positions_stay_what_they_are() -> None:
    codes = [[1, 0, 1], [0, -10000, 0], [0, 1, 2]]
    inputs = [ModelInput("x", torch.tensor(one), {0: "seq"}) for one in codes]
    longer = resize_inputs(inputs, {"seq": 5})
    assert [one.value.tolist() for one in longer] == [one + one[:2] for one in codes]
    (mask,) = resize_inputs([ModelInput("m", torch.tensor([True, False]), {0: "seq"})], {"seq": 3})
    assert mask.value.tolist() == [True, False, True]


def test_tokens_of_a_small_vocabulary_are_no_positions() -> None:
    """All numbers between two are used, but in no order: repeated, rows would tie."""
    ids = ModelInput("ids", torch.tensor([[3, 1, 2, 0], [0, 3, 1, 2]]), {0: "batch"})
    (more,) = resize_inputs([ids], {"batch": 4})
    assert not more.value[2:].equal(ids.value)
    places = ModelInput("places", torch.arange(8).reshape(2, 4), {0: "batch"})
    (more,) = resize_inputs([places], {"batch": 4})
    assert more.value[2:].equal(places.value)


def test_derived_dimensions_follow_and_others_stay() -> None:
    inputs = [
        ModelInput("past", torch.ones(2, 4, 8), {0: "batch", 1: "past"}),
        ModelInput("mask", torch.ones(2, 9), {0: "batch", 1: "2*past+1"}),
        ModelInput("fixed", torch.ones(3)),
    ]
    resized = resize_inputs(inputs, {"past": 7})
    assert [tuple(item.value.shape) for item in resized] == [(2, 7, 8), (2, 15), (3,)]
    assert resized[2].value is inputs[2].value


def test_an_impossible_size_is_refused() -> None:
    inputs = [ModelInput("x", torch.ones(4), {0: "n-3"})]
    with pytest.raises(ConfigError, match=r"axis 0 of input 'x' \('n-3'\) would have size -1"):
        resize_inputs(inputs, {"n": 2})
    with pytest.raises(ConfigError, match="no input has a dimension 'm'; there are: n"):
        resize_inputs(inputs, {"m": 3})
