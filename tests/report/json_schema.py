"""The schemas in docs, beside what is printed and beside the dataclasses that it is made from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from jsonschema import Draft202012Validator, ValidationError

from moh_deploy.report.report import json_members
from moh_deploy.system.bounded_json import to_json_text

DOCS = Path(__file__).parents[2] / "docs"

Schema = dict[str, Any]

_TYPES = {
    str: "string",
    Path: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    NoneType: "null",
}


def validate(command: str, content: object) -> None:
    """Check all that a command prints, if it comes to an answer or to none."""
    Draft202012Validator(_read(command)).validate(content)


def validate_answer(command: str, content: object) -> None:
    """Check what a command prints if it comes to an answer."""
    Draft202012Validator(answer_schema(command)).validate(content)


def assert_of_form(command: str, report: Mapping[str, object]) -> None:
    """Assert that a report is valid, and is not with a key too many or any key too few."""
    content = json.loads(to_json_text(report))
    validate_answer(command, content)
    for wrong in ({**content, "verdict": "good"}, *_each_without_a_key(content)):
        with pytest.raises(ValidationError):
            validate_answer(command, wrong)


def _each_without_a_key(content: Schema) -> Iterator[Schema]:
    for missing in content:
        yield {key: content[key] for key in content if key != missing}


def answer_schema(command: str) -> Schema:
    """Return the schema of an answer; the other alternative is an error alone."""
    whole = _read(command)
    (answer, _) = whole["anyOf"]
    return {**answer, "$defs": whole["$defs"]}


def _read(command: str) -> Schema:
    return json.loads((DOCS / f"{command}.schema.json").read_text())


def schema_of(hint: object) -> Schema:
    """Derive a schema from a type: of a dataclass, from what JSON has of it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType):
        return {"anyOf": [schema_of(item) for item in arguments]}
    if origin is tuple:
        items = [schema_of(item) for item in arguments if item is not ...]
        return {"type": "array", "items": {"anyOf": items} if len(items) > 1 else items[0]}
    if origin is not None:
        names, values = arguments  # of a mapping
        return {"type": "object", "propertyNames": schema_of(names), "of": schema_of(values)}
    if is_dataclass(hint):
        return {"type": "object", "properties": dict(_properties(hint))}
    return {"type": _TYPES[hint]}


def _properties(form: type) -> Iterator[tuple[str, Schema]]:
    hints = get_type_hints(form)
    for name, attribute, is_flat in json_members(form):
        getter = getattr(getattr(form, attribute, None), "fget", None)
        hint = hints[attribute] if getter is None else get_type_hints(getter)["return"]
        if is_flat:
            yield from _properties(hint)
        else:
            yield name, schema_of(hint)


def misfits(derived: Schema, docs: Schema, defs: Schema, where: str = "") -> Iterator[str]:
    """Yield where a value of the derived schema need not be one of that in the docs.

    A float may be NaN or infinite, which JSON spells in strings; types do not say which ones can.
    """
    docs = _resolved(docs, defs)
    choices = [_resolved(item, defs) for item in docs.get("anyOf", [docs])]
    if "anyOf" in derived:
        for item in derived["anyOf"]:
            yield from misfits(item, docs, defs, where)
    elif "enum" in derived:
        known = {value for item in choices for value in [*item.get("enum", []), item.get("const")]}
        if not {*derived["enum"]} <= known and not any(_type(item) == "string" for item in choices):
            yield f"{where}: {derived['enum']} of {known}"
    else:
        fits = [item for item in choices if _type(item) == derived["type"]]
        if not fits:
            yield f"{where}: {derived['type']} is not in {choices}"
        elif derived["type"] == "array":
            yield from misfits(derived["items"], fits[0]["items"], defs, f"{where}[]")
        elif derived["type"] == "object":
            yield from _object_misfits(derived, fits[0], defs, where)


def _object_misfits(derived: Schema, docs: Schema, defs: Schema, where: str) -> Iterator[str]:
    if "of" in derived:
        names = docs.get("propertyNames", {"type": "string"})
        yield from misfits(derived["propertyNames"], names, defs, f"{where} names")
        yield from misfits(derived["of"], docs["additionalProperties"], defs, f"{where}{{}}")
        return
    if "properties" not in docs:  # a mapping in the docs
        for name, item in derived["properties"].items():
            yield from misfits(item, docs["additionalProperties"], defs, f"{where}.{name}")
        return
    documented, here = docs["properties"], derived["properties"]
    for name in {*docs.get("required", ()), *here} - {*here}:
        yield f"{where}.{name} is documented, and is not there"
    for name, item in here.items():
        if name in documented:
            yield from misfits(item, documented[name], defs, f"{where}.{name}")
        else:
            yield f"{where}.{name} is not documented"


def _resolved(schema: Schema, defs: Schema) -> Schema:
    reference = str(schema.get("$ref", ""))
    return defs[reference.removeprefix("#/$defs/")] if reference else schema


def _type(schema: Schema) -> object:
    return schema.get("type")
