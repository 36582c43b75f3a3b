from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from moh_deploy.errors import ExportError
from moh_deploy.frontend.inputs.sizes import SizeTrials
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
