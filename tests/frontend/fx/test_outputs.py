from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch.utils import _pytree as pytree

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.containers import output_names, tensors_of
from tests.frontend.traced import plain_trace

X = torch.ones(2)
Pair = namedtuple("Pair", ["left", "right"])

NAMED = {
    "one_tensor": (lambda x: x + 1, ["output"]),
    "one_in_a_dictionary": (lambda x: {"logits": x + 1}, ["logits"]),
    "tuple": (lambda x: (x + 1, x + 2), ["output_0", "output_1"]),
    "dictionary": (lambda x: {"logits": x + 1, "label": x + 2}, ["logits", "label"]),
    "nested": (
        lambda x: {"y": x + 1, "cache": [(x + 2, x + 3), (x + 4, x + 5)]},
        ["y", "cache.0.0", "cache.0.1", "cache.1.0", "cache.1.1"],
    ),
    "none_and_numbers": (lambda x: (x + 1, None, 3, x + 2), ["output_0", "output_3"]),
}


@pytest.mark.parametrize("name", NAMED)
def test_outputs_are_named_after_their_place(name: str):
    function, expected = NAMED[name]
    assert output_names(plain_trace(function, X), ()) == expected


def test_given_names_are_used():
    assert output_names(plain_trace(lambda x: (x + 1, x + 2), X), ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a",), r"1 output names are given \(a\), but the model has 2 .*\(output_0, output_1\)"),
        (("a", "b", "c"), "3 output names"),
        (("a", "a"), "output name 'a' is given twice"),
        (("a", "x"), "output name 'x' .* is the name of an input"),
    ],
)
def test_names_that_do_not_fit_are_refused(given: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        output_names(plain_trace(lambda x: (x + 1, x + 2), X), given, ["x"])


def test_place_with_the_name_of_an_input_is_told_apart():
    program = plain_trace(lambda x: {"x": x + 1, "y": x + 2}, X)
    assert output_names(program, (), ["x"]) == ["x_out", "y"]


def test_tensors_of_a_nested_value_come_in_order():
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert tensors_of({"a": (one, None), "b": [two, 5, {"c": three}]}) == [one, two, three]
    assert tensors_of(Pair(one, two)) == [one, two]


def test_output_of_an_inputs_name_is_told_apart():
    program = plain_trace(lambda x: {"x": x + 1}, X)
    assert output_names(program, (), ["x"]) == ["x_out"]


def test_name_of_an_input_is_refused():
    with pytest.raises(ConfigError, match="'x' is given twice, or is the name of an input"):
        output_names(plain_trace(lambda x: x + 1, X), ("x",), ["x"])


def test_single_tensor_beside_a_number_has_a_name():
    assert output_names(plain_trace(lambda x: (x + 1, 2), X), ()) == ["output_0"]


class Answer(dict):
    """Registered as Hugging Face registers its outputs: without keys."""


class Opaque:
    """Registered without saying what its parts are called."""

    def __init__(self, *parts):
        self.parts = parts


pytree.register_pytree_node(
    Answer,
    lambda one: (list(one.values()), list(one)),
    lambda values, names: Answer(zip(names, values, strict=True)),
)
pytree.register_pytree_node(
    Opaque, lambda one: (list(one.parts), None), lambda values, _: Opaque(*values)
)


def test_classes_that_were_registered_without_keys_are_opened():
    program = plain_trace(lambda x: Answer(logits=x + 1, cache=[Opaque(x + 2, x + 3)]), X)
    assert output_names(program, ()) == ["logits", "cache.0.0", "cache.0.1"]
