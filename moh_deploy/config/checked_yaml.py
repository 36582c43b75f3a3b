"""Read a YAML file into a pydantic model, or say all that is wrong with it at once."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_yaml import read_yaml
from moh_deploy.system.suggest import did_you_mean, shortened

# Say what is wrong with a YAML document that pydantic refused: the key path, what is expected.

Key = str | int


def explain(
    item: ErrorDetails,
    document: object,
    source: str,
    *,
    model: type[BaseModel],
    overridden: Sequence[tuple[Key, ...]] = (),
    expectation: Callable[[Sequence[Key]], str | None] = lambda path: None,
) -> str:
    """Return a sentence on one problem, or several lines of those that our own checks found.

    Args:
        source: Where the document comes from; it opens the sentence.
        overridden: Key paths that `--set` gave, which then opens it.
        expectation: From a path to what is expected there; None for pydantic's words.
    """
    if item["type"] == "value_error":
        # One of our own checks: its text names the place already.
        return "\n".join(f"{source}: {line}" for line in str(item["ctx"]["error"]).splitlines())
    path = document_path(item["loc"], document)
    if any(path[: len(keys)] == keys for keys in overridden):
        source = "--set"
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
    value: Any = document
    for key in loc:
        # The document is walked along: pydantic's own keys for branches of a union lead nowhere in
        # it.
        is_entry = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if not is_entry and not isinstance(value, dict):
            break
        path.append(key)
        value = value[key] if is_entry else value.get(key)
    return tuple(path)


def dotted(keys: Sequence[Key]) -> str:
    """Return a key's path, such as `inputs.0.shape`."""
    return ".".join(str(key) for key in keys)


def shown_value(value: object) -> str:
    """Return a value as a message has it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


M = TypeVar("M", bound=BaseModel)


def read_mapping(path: Path, model: type[BaseModel], *, hint: str | None = None) -> dict[Any, Any]:
    """Read a file that has to hold a mapping: the fields of a model.

    Args:
        hint: Where a user gets one to begin with.

    Raises:
        ConfigError: It is unreadable, or holds something else.
    """
    document = read_yaml(path, error=ConfigError)
    if not isinstance(document, dict):
        found = "is empty" if document is None else f"holds {document!r:.60}"
        raise ConfigError(
            f"{path}: {found}; expected a mapping with {shortened(model.model_fields)}.", hint=hint
        )
    return document


def checked(document: object, model: type[M], source: str) -> M:
    """Return what a document says.

    Args:
        source: What messages call it.

    Raises:
        ConfigError: It is not of the schema: a line for each thing that is wrong.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        lines = [explain(details, document, source, model=model) for details in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


# Refuse files that name code or pickles, unless the user's own option trusts them.


def require_trust(source: str, named: Mapping[str, object], option: str, *, is_given: bool) -> None:
    """Refuse a file that makes us run code of its choice, before anything is imported.

    What options name (`--factory`, `--code-dir`, `--metric`) needs no trust: the user chose it.

    Args:
        named: Key in the file to its value; empty values name nothing.

    Raises:
        ConfigError: The file names something, and the option is not given.
    """
    lines = [
        f"{source}: {key} is {shown_value(value)}, and using it runs code."
        for key, value in named.items()
        if value
    ]
    if lines and not is_given:
        raise ConfigError(
            "\n".join(lines),
            hint=f"If you trust who wrote it, add {option} (in Python:"
            f" {option.strip('-').replace('-', '_')}=True).",
        )
