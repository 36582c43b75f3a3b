import json
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.containers import (
    built,
    leaf_keys,
    open_container,
    output_names,
    tensors_of,
    without_classes,
)
from tests.frontend.traced import plain_trace


class Pair(NamedTuple):
    key: object
    value: object


@dataclass
class Batch:
    ids: object
    mask: object = None
    made: int = field(init=False, default=0)


class Registered:
    """As user code registers a class: with a context of its own, and without keys."""

    def __init__(self, items: list[object], seen: int) -> None:
        self.items, self.seen = items, seen


pytree.register_pytree_node(
    Registered,
    lambda item: (item.items, (item.seen,)),
    lambda items, seen: Registered(items, *seen),
)


class Output(OrderedDict[str, object]):
    """As Hugging Face's outputs are: a context that names the items."""


pytree.register_pytree_node(
    Output,
    lambda item: (list(item.values()), list(item)),
    lambda values, names: Output(zip(names, values, strict=True)),
)


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ([1, 2], ("0", "1")),
        ((1, 2), ("0", "1")),
        ({"a": 1, 3: 2}, ("a", "3")),
        (Pair(1, 2), ("key", "value")),
        (Batch(1, 2), ("ids", "mask")),
        (Output(hidden=1, last=2), ("hidden", "last")),
        (OrderedDict(a=1, b=2), ("a", "b")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_containers_are_opened_and_built_again_with_other_items(value: object, keys: object):
    parts = open_container(value)
    assert (parts.keys, parts.items) == (keys, (1, 2))
    # A package keeps the context as JSON.
    again = built(parts.container, json.loads(json.dumps(parts.context)), [1, 2])
    assert type(again) is type(value)
    assert again == value


def test_registered_class_without_names_is_numbered_and_keeps_its_context():
    parts = open_container(Registered([5, 6], seen=7))
    assert parts.keys == ("0", "1")
    again = built(parts.container, json.loads(json.dumps(parts.context)), [8, 9])
    assert isinstance(again, Registered)
    assert (again.items, again.seen) == ([8, 9], 7)


@pytest.mark.parametrize("value", [3, None, "text", object(), {1, 2}])
def test_anything_else_stays_closed(value: object):
    assert open_container(value) is None
    assert without_classes(value) is value


def test_plain_values_hold_no_classes():
    value = Output(first=Batch(Pair(1, [2])), past=(Registered([3], 7),))
    expected = {"first": {"ids": {"key": 1, "value": [2]}, "mask": None}, "past": ({"0": 3},)}
    assert without_classes(value) == expected


@pytest.mark.parametrize(
    "name",
    ["tests.frontend.fx.test_containers.Gone", "os.path.join", "json.JSONDecoder", "no.Batch"],
)
def test_class_that_is_not_known_is_refused_and_not_imported(name: str):
    with pytest.raises(ConfigError, match=f"is called with a {name}, which is not known here"):
        built(name, None, [])


def test_class_that_does_not_take_its_items_is_an_error():
    name = f"{__name__}.Batch"
    with pytest.raises(ConfigError, match=rf"a {name} cannot be built .*TypeError.*'wrong'"):
        built(name, ["wrong"], [1])


X = torch.ones(2)
OutputsPair = namedtuple("OutputsPair", ["left", "right"])

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
    assert tensors_of(OutputsPair(one, two)) == [one, two]


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
    lambda item: (list(item.values()), list(item)),
    lambda values, names: Answer(zip(names, values, strict=True)),
)
pytree.register_pytree_node(
    Opaque, lambda item: (list(item.parts), None), lambda values, _: Opaque(*values)
)


def test_classes_that_were_registered_without_keys_are_opened():
    program = plain_trace(lambda x: Answer(logits=x + 1, cache=[Opaque(x + 2, x + 3)]), X)
    assert output_names(program, ()) == ["logits", "cache.0.0", "cache.0.1"]


TreeKeysPair = namedtuple("TreeKeysPair", ["key", "value"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, [()]),
        ([1, (2, 3)], [("0",), ("1", "0"), ("1", "1")]),
        ({"a": 1, 2: [3]}, [("a",), ("2", "0")]),
        (OrderedDict(b=1, a=2), [("b",), ("a",)]),
        (defaultdict(int, b=1, a=2), [("b",), ("a",)]),
        ([TreeKeysPair(1, {"x": 2})], [("0", "key"), ("0", "value", "x")]),
        ({}, []),
    ],
)
def test_keys_lead_to_each_leaf(value: Any, expected: list[tuple[str, ...]]):
    assert leaf_keys(pytree.tree_structure(value)) == expected
