"""JSON of a report, from its dataclass: fields by their names, and what else is marked.

A field whose metadata is `HIDDEN` is left out; the members of one that is `FLAT`, or of each of its
items, stand among those of what it is in. A property is there if it is marked by `in_json`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

_KEY = "json"
HIDDEN = {_KEY: "hidden"}
FLAT = {_KEY: "flat"}

Getter = TypeVar("Getter", bound=Callable[..., object])


def in_json(name: str = "") -> Callable[[Getter], Getter]:
    """Mark the getter of a property, below `@property`.

    Args:
        name: What JSON calls it; empty for the property's own.
    """

    def mark(getter: Getter) -> Getter:
        # The getter carries the mark: of a property of a class of its own mypy would know no type.
        setattr(getter, _KEY, name or getter.__name__)
        return getter

    return mark


def to_json(value: object) -> object:
    """Return plain JSON types; NaN and infinity stay, see `to_json_text`."""
    # Not `dataclasses.asdict`: it copies everything, and knows neither properties nor flat members.
    if is_dataclass(value):
        return dict(_members(value))
    if isinstance(value, Mapping):
        return {str(name): to_json(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _members(value: object) -> Iterator[tuple[str, object]]:
    for name, attribute, is_flat in json_members(cast(type, type(value))):
        member = getattr(value, attribute)
        if is_flat:
            for item in member if isinstance(member, tuple) else (member,):
                yield from _members(item)
        else:
            yield name, to_json(member)


@cache
def json_members(form: type) -> tuple[tuple[str, str, bool], ...]:
    """Return what JSON has of a dataclass: its name there, the attribute, and whether it is flat.

    Of two of one name the later counts.
    """
    kinds = {field.name: field.metadata.get(_KEY) for field in fields(form)}
    shown = [(name, name, kind == "flat") for name, kind in kinds.items() if kind != "hidden"]
    # `dir` has what base classes mark, too; it is in order of names, and objects have no order.
    getters = {name: getattr(getattr(form, name, None), "fget", None) for name in dir(form)}
    marked = [(getattr(getter, _KEY, None), name) for name, getter in getters.items()]
    return (*shown, *((name, attribute, False) for name, attribute in marked if name is not None))
