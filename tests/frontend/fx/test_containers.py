from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from torch.utils import _pytree as pytree

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.containers import built, open_container, without_classes


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
    Registered, lambda one: (one.items, (one.seen,)), lambda items, seen: Registered(items, *seen)
)


class Output(OrderedDict[str, object]):
    """As Hugging Face's outputs are: a context that names the items."""


pytree.register_pytree_node(
    Output,
    lambda one: (list(one.values()), list(one)),
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
    assert parts is not None
    assert (parts.keys, parts.items) == (keys, (1, 2))
    # A package keeps the context as JSON.
    again = built(parts.container, json.loads(json.dumps(parts.context)), [1, 2])
    assert type(again) is type(value)
    assert again == value


def test_registered_class_without_names_is_numbered_and_keeps_its_context():
    parts = open_container(Registered([5, 6], seen=7))
    assert parts is not None
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
