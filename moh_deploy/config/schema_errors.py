"""Say what is wrong with a YAML document that pydantic refused: the key path, what is expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from moh_deploy.system.suggest import did_you_mean, shortened

Key = str | int


def explain(
    item: ErrorDetails,
    document: object,
    source: str,
    *,
    model: type[BaseModel],
    expectation: Callable[[Sequence[Key]], str | None] = lambda path: None,
) -> str:
    """Return a sentence on one problem, or several lines of those that our own checks found.

    Args:
        item: As pydantic has it.
        document: What was validated.
        source: Where it comes from; it opens the sentence.
        model: What the document is of.
        expectation: From a path to what is expected there; None for pydantic's words.
    """
    if item["type"] == "value_error":
        # One of our own checks: its text names the place already.
        return "\n".join(f"{source}: {line}" for line in str(item["ctx"]["error"]).splitlines())
    path = document_path(item["loc"], document)
    if item["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        hint = f"{did_you_mean(str(path[-1]), known)} It may hold: {shortened(known)}.".strip()
        return f"{source}: {dotted(path)} is not a known key. {hint}"
    if item["type"] == "missing":
        what = "has too few values" if isinstance(item["loc"][-1], int) else "is missing"
        return f"{source}: {dotted(path)} {what}."
    words = expectation(path) or item["msg"][0].lower() + item["msg"][1:]
    return f"{source}: {dotted(path)} is {shown_value(item['input'])}: {words}{_of_yaml(item)}."


def _known_keys(model: type[BaseModel], section: Sequence[Key]) -> list[str]:
    """Return the keys that a section of a document may hold."""
    keys = iter(section)
    for key in keys:
        field = model.model_fields.get(str(key))
        if field is not None:  # else the index of an entry
            model = _section_in(field.annotation) or model
            if get_origin(field.annotation) is dict:
                next(keys, None)  # a name that the user chose
    return list(model.model_fields)


def _section_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _of_yaml(item: ErrorDetails) -> str:
    """Return what to write in place of `1e-3`, where a number is expected."""
    value = item["input"]
    if item["type"] != "float_type" or not isinstance(value, str) or not _POWER.fullmatch(value):
        return ""
    return "; YAML takes a power of ten for text unless it has a point and a sign, as in 1.0e-3"


_POWER = re.compile(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+")


def document_path(loc: Sequence[Key], document: object) -> tuple[Key, ...]:
    """Return an error's location without the branches of unions that pydantic appends to it."""
    path: list[Key] = []
    value = document
    for key in loc:
        # The document is walked along: pydantic's own keys for branches of a union lead nowhere in
        # it.
        is_entry = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if not is_entry and not isinstance(value, dict):
            break
        path.append(key)
        value = value[key] if is_entry else value.get(key)  # type: ignore[attr-defined, index]
    return tuple(path)


def dotted(keys: Sequence[Key]) -> str:
    """Return `inputs.0.shape`."""
    return ".".join(str(key) for key in keys)


def shown_value(value: object) -> str:
    """Return a value as a message has it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
