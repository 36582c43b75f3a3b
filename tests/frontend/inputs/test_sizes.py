from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.inputs.sizes import SizeTrials, resize_inputs
from moh_deploy.frontend.load.model import ModelInput

X = ModelInput("x", torch.arange(24.0).reshape(2, 4, 3), {0: "batch", 1: "seq"})


def shapes(
    accepts: Callable[[int, int], bool],
    inputs: Sequence[ModelInput] = (X,),
    *,
    raises: type[Exception] = RuntimeError,
) -> list[tuple]:
    """Sizes at which a model that accepts some sizes only is run besides the example's."""

    def run(arguments: Sequence[Tensor]) -> list[Tensor]:
        if not accepts(*arguments[0].shape[:2]):
            raise raises("not at this size")
        return list(arguments)

    return [tuple(made[0].value.shape[:2]) for made, _ in SizeTrials(inputs, run).others()]


def test_all_dimensions_change_and_then_all_are_one():
    assert shapes(lambda batch, seq: True) == [(3, 5), (1, 1)]


def test_sizes_that_the_model_does_not_take_are_passed_over():
    assert shapes(lambda batch, seq: seq % 2 == 0) == [(4, 8)]
    assert shapes(lambda batch, seq: seq < 5) == [(1, 3), (1, 1)]


@pytest.mark.parametrize("raises", [Exception, ZeroDivisionError, KeyError])
def test_model_may_refuse_a_size_with_any_error(raises: type[Exception]):
    assert shapes(lambda batch, seq: seq < 5, raises=raises) == [(1, 3), (1, 1)]


def test_dimensions_that_cannot_change_together_change_alone():
    assert shapes(lambda batch, seq: (batch, seq) in [(3, 4), (2, 8)]) == [(3, 4), (2, 8)]


def test_model_without_dynamic_dimensions_runs_once():
    fixed = ModelInput("x", X.value, {})
    assert shapes(lambda batch, seq: True, [fixed]) == []


def test_derived_dimension_changes_with_its_name():
    mask = ModelInput("mask", torch.ones(2, 5), {0: "batch", 1: "seq+1"})
    seen = []
    list(SizeTrials([X, mask], lambda arguments: seen.append(arguments[1].shape) or []).others())
    assert [tuple(shape) for shape in seen] == [(3, 6), (1, 2)]


def test_dimension_that_has_one_size_only_is_refused():
    with pytest.raises(ExportError) as caught:
        shapes(lambda batch, seq: seq == 4)
    assert "runs at no other size" in caught.value.message
    assert "seq=5: not at this size" in caught.value.message
    assert "--dynamic" in caught.value.hint


def test_bug_of_the_model_is_not_taken_for_a_size_it_refuses():
    def interrupted(arguments: Sequence[Tensor]) -> list[Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(SizeTrials([X], interrupted).others())


def test_expensive_model_is_tried_at_size_one_alone():
    seen = []
    list(
        SizeTrials([X], lambda arguments: seen.append(arguments[0].shape) or []).others(
            thorough=False
        )
    )
    assert [tuple(shape[:2]) for shape in seen] == [(1, 1)]


def test_expensive_model_that_does_not_take_size_one_is_tried_at_another():
    def run(arguments: Sequence[Tensor]) -> list[Tensor]:
        if arguments[0].shape[1] == 1:
            raise RuntimeError("too short")
        return list(arguments)

    made = list(SizeTrials([X], run).others(thorough=False))
    assert [tuple(inputs[0].value.shape[:2]) for inputs, _ in made] == [(3, 5)]


def test_ids_are_those_of_the_example_where_the_model_needs_them():
    """As of so many places for an image in a text."""
    ids = ModelInput("ids", torch.tensor([[3, 9, 40], [9, 5, 22]]), {0: "batch"})

    def run(arguments: Sequence[Tensor]) -> list[Tensor]:
        if not (arguments[0] == 9).any(1).all():
            raise ValueError("no image")
        return list(arguments)

    made = SizeTrials([ids], run).at({"batch": 3})
    assert not isinstance(made, Exception)
    assert made[0][0].value[2].tolist() == [3, 9, 40]


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
    inputs = [ModelInput("x", torch.tensor(code), {0: "seq"}) for code in codes]
    longer = resize_inputs(inputs, {"seq": 5})
    assert [item.value.tolist() for item in longer] == [code + code[:2] for code in codes]
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
