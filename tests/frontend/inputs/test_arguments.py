"""Inputs are brought to the parameters that they are meant for, or refused."""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import pytest
import torch
from torch import Tensor

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.arguments import bind, flattened
from moh_deploy.frontend.load.model import ModelInput, arguments_of
from moh_deploy.package import Call

A, B, C = (torch.full((2,), float(number)) for number in range(3))


def item(name: str, value: Tensor = A) -> ModelInput:
    return ModelInput(name, value)


def files(*names: str) -> dict[str, object]:
    """What a file holds: its members by name, each with another value."""
    return {name: item(name, torch.full((2,), float(i))) for i, name in enumerate(names)}


def called(forward: Callable[..., object], given: object) -> tuple[object, ...]:
    """Bind, and return what the function returns when it is called so: numbers for tensors."""
    bound = bind(forward, given)
    assert list(bound.call.inputs) == [entry.name for entry in bound.inputs]
    args, kwargs = arguments_of(bound.call, [entry.value for entry in bound.inputs])
    return forward(*args, **kwargs)


def named(ids, mask=None, *, past=None, use_cache=True):
    return ids, mask, past, use_cache


def test_names_of_parameters_decide_and_not_their_order():
    bound = bind(named, files("past", "mask", "ids"))
    assert [entry.name for entry in bound.inputs] == ["ids", "mask", "past"]
    ids, mask, *others = called(named, {"mask": A, "use_cache": False, "ids": B})
    assert (int(ids[0]), int(mask[0]), *others) == (1, 0, None, False)
    ids, mask, past, use_cache = called(named, {"past": C, "ids": B})
    assert (int(ids[0]), mask, int(past[0]), use_cache) == (1, None, 2, True)


def test_behind_a_parameter_that_is_left_out_others_go_by_keyword():
    a, b, c = called(lambda a, b=None, c=None: (a, b, c), {"c": C, "a": A})
    assert (int(a[0]), b, int(c[0])) == (0, None, 2)


def test_dynamic_axes_stay_with_their_input():
    mask = ModelInput("mask", A, {0: "length"})
    bound = bind(named, {"mask": mask, "ids": item("ids")})
    assert [entry.dims for entry in bound.inputs] == [{}, {0: "length"}]


@pytest.mark.parametrize(
    ("names", "forward"),
    [
        (("a", "b"), lambda x, y: (x, y)),
        (("x", "mask"), lambda x, y: (x, y)),  # y has to be given anyway
        (("x", "past_0"), lambda x, *past: (x, *past)),
        (("a", "b"), lambda *args, **kwargs: args),
        (("a.1", "a"), lambda x, y: (x, y)),  # dots mean nothing where names do not
    ],
)
def test_names_that_are_no_parameters_are_positional_arguments(
    names: tuple[str, ...], forward: Callable[..., object]
):
    first, second = called(forward, files(*names))
    assert (float(first[0]), float(second[0])) == (0, 1)
    assert [entry.name for entry in bind(forward, files(*names)).inputs] == list(names)


def test_arguments_by_position_are_called_as_their_parameters():
    def forward(x, pair, *rest):
        return x, pair, rest

    bound = bind(forward, (A, {"key": B}, None, C))
    assert [entry.name for entry in bound.inputs] == ["x", "pair.key", "rest.1"]
    assert called(forward, (A, {"key": 3}, None, 4))[1:] == ({"key": 3}, (None, 4))


def test_varargs_take_a_tuple_by_name():
    def forward(x, *past):
        return past

    assert [int(entry[0]) for entry in called(forward, {"past": (A, B), "x": C})] == [0, 1]
    assert called(forward, {**files("past.1", "past.0"), "x": C})[0][0] == 1
    with pytest.raises(ConfigError, match=r"takes '\*past', which needs a tuple"):
        bind(forward, {"past": A, "x": C})


@pytest.mark.parametrize(
    ("forward", "given", "message", "hint"),
    [
        (named, files("ids", "maks"), "'maks' is no parameter of the model's forward", "'mask'?"),
        (named, files("mak", "idss"), "'mak' and 'idss' are no parameters", "'mask'?"),
        (named, files("mask", "past"), "no input is given for 'ids'", "(ids, mask=None, *, past"),
        (named, files("a", "b", "c"), "'a' and 'b' and 'c' are no parameters", "in any order"),
        (named, (A, B, C), "takes 2 positional arguments, got 3", "(ids, mask=None"),
        (lambda x, y: x, files("a"), "'a' is no parameter", ""),
        (lambda x, *, y: x, files("a", "b"), "'a' and 'b' are no parameters", ""),
        (lambda x, *, y: x, (A,), "no input is given for 'y'", ""),
        (lambda **kw: kw, files("ids.0", "ids.2"), "'ids.1' is missing", "without gaps"),
        (lambda ids: ids, files("ids", "ids.0"), "leads into 'ids', which is given itself", ""),
        (lambda ids: ids, files("ids.0", "ids"), "is given twice, or others lead into it", ""),
        (lambda batch: 0, files("ids", "mask"), "which takes (batch)", "'batch.ids'"),
    ],
)
def test_names_that_fit_no_call_are_refused_with_the_parameters(
    forward: Callable[..., object], given: object, message: str, hint: str
):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        bind(forward, given)
    assert hint in str(caught.value.hint)


def test_keywords_take_names_that_are_no_parameters_and_they_are_told():
    def forward(x, **others):
        return others

    bound = bind(forward, files("x", "extra"))
    assert bound.unknown == {"extra"}
    assert bind(forward, {"x": A, "extra": 3}).unknown == set()
    assert called(lambda **kw: kw, files("a"))["a"][0] == 0


def test_misspelt_switch_is_not_lost_in_keywords():
    def forward(x, use_cache=True, **others):
        return others

    with pytest.raises(ConfigError, match="'use_cahce' is no parameter") as caught:
        bind(forward, {"x": A, "use_cahce": False})
    assert "Did you mean 'use_cache'?" in str(caught.value.hint)
    assert called(forward, {"x": A, "entirely_another": 3}) == {"entirely_another": 3}

    def with_a_cache(x, cache=None, **others):
        return others

    assert called(with_a_cache, {"x": A, "use_cache": False}) == {"use_cache": False}
    with pytest.raises(ConfigError, match="'cahce' is no parameter"):
        bind(with_a_cache, {"x": A, "cahce": False})


# What is nested.


@dataclass
class Batch:
    ids: Tensor
    mask: Tensor | None = None
    scaled: bool = False


class State(NamedTuple):
    key: Tensor
    value: Tensor


class Fields(TypedDict):
    first: Batch


def test_paths_lead_into_tuples_and_dicts():
    def forward(past):
        return past

    past = called(forward, files("past.1.value", "past.0.key", "past.0.value", "past.1.key"))
    assert isinstance(past, tuple)
    assert [{k: int(v[0]) for k, v in entry.items()} for entry in past] == [
        {"key": 1, "value": 2},
        {"value": 0, "key": 3},
    ]


def test_annotation_says_what_paths_lead_into():
    def forward(
        batch: Batch | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
        states: list[State] = (),
        fields: Fields | None = None,
        more: dict[str, list[Tensor]] | None = None,
    ):
        return batch, past, states, fields, more

    given = files("batch.mask", "batch.ids", "past.0.0", "past.0.1", "states.0.key")
    given |= {**files("states.0.value", "fields.first.ids", "more.x.0"), "batch.scaled": True}
    batch, past, states, fields, more = called(forward, given)
    assert isinstance(batch, Batch)
    assert (int(batch.ids[0]), int(batch.mask[0]), batch.scaled) == (1, 0, True)
    assert isinstance(past, list)
    assert isinstance(past[0], tuple)
    assert isinstance(states, list)
    assert isinstance(states[0], State)
    assert isinstance(fields["first"], Batch)
    assert isinstance(more["x"], list)
    with pytest.raises(ConfigError, match="Batch has no field 'idds', only ids, mask, scaled"):
        bind(forward, files("batch.idds"))


def test_values_in_memory_keep_their_classes():
    def forward(batch, past):
        return batch, past

    given = {"past": [(A, State(B, C))], "batch": Batch(A, scaled=True)}
    bound = bind(forward, given)
    assert [entry.name for entry in bound.inputs] == [
        "batch.ids",
        "past.0.0",
        "past.0.1.key",
        "past.0.1.value",
    ]
    batch, past = called(forward, given)
    assert batch.mask is None
    assert isinstance(past[0][1], State)
    assert past[0][1].value[0] == 2


class Mode(enum.IntEnum):
    FAST = 3


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text", Mode.FAST])
def test_constants_are_no_inputs(value: object):
    bound = bind(named, {"ids": A, "use_cache": value})
    assert [entry.name for entry in bound.inputs] == ["ids"]
    found = bound.call.kwargs["use_cache"].value
    assert found == value
    assert type(found) in (type(None), bool, int, float, str)


def test_number_without_axes_is_a_constant_where_the_parameter_is_annotated_so():
    def forward(ids, flag: bool = True, count: int | None = None, scale: float = 1.0, on=False):
        return flag, count, scale, on

    given = {
        "ids": item("ids"),
        "flag": item("flag", torch.tensor(False)),
        "count": item("count", torch.tensor(3)),
        "scale": item("scale", torch.tensor(2.0)),
        "on": item("on", torch.tensor(True)),
    }
    flag, count, scale, on = called(forward, given)
    assert (flag, count, on) == (False, 3, True)
    assert isinstance(scale, Tensor)
    # A tensor in memory is meant as one.
    assert [entry.name for entry in bind(forward, {"ids": A, "count": torch.tensor(3)}).inputs] == [
        "ids",
        "count",
    ]


class Closed:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Closed(), r"'ids\.0' is a Closed, whose tensors are not known"),
        (float("inf"), r"'ids\.0' is inf, which is not supported"),
        (np.array(["a"]), "dtype <U1, which is not supported"),
        (torch.zeros(2, dtype=torch.complex64), "dtype complex64"),
    ],
)
def test_values_that_are_no_arguments_are_refused_with_their_path(value: object, message: str):
    with pytest.raises(ConfigError, match=message):
        bind(named, {"ids": [value]})


def test_same_tensor_twice_is_two_inputs():
    bound = bind(named, {"ids": [(A, A)]})
    assert [entry.name for entry in bound.inputs] == ["ids.0.0", "ids.0.1"]


def test_values_of_a_program_are_flat_and_have_no_constants():
    assert [entry.name for entry in flattened({"past": [(A, B)], "x": C})] == [
        "past.0.0",
        "past.0.1",
        "x",
    ]
    with pytest.raises(ConfigError, match="'use_cache' is the constant False"):
        flattened({"use_cache": False})


def test_plain_call_is_told_from_others():
    assert bind(named, files("ids", "mask")).call.is_plain
    for given in ({"ids": [A]}, {"ids": A, "past": B}, {"ids": A, "mask": None}):
        assert not bind(named, given).call.is_plain
    assert Call((), {}).inputs == ()
