"""Take fields of the types that the protocol says out of a client's JSON.

`what` names in the refusal whose field it is. All raise `Refusal` where the field has another type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from moh_deploy.serving.http.refusal import Refusal


def object_of(value: object, what: str) -> dict[str, object]:
    """Return a value that has to be a JSON object."""
    if not isinstance(value, dict):
        raise Refusal(f"{what} is no JSON object.")
    return cast(dict[str, object], value)


def objects_in(found: Mapping[str, object], key: str) -> list[dict[str, object]]:
    """Return a list of objects, which has to be there."""
    values = found.get(key)
    if not isinstance(values, list):
        raise Refusal(f"{key} is missing or no list.")
    return [object_of(value, f"one of {key}") for value in values]


def parameters_in(found: Mapping[str, object], what: str) -> dict[str, object]:
    """Return the object `parameters`, empty where there is none."""
    return object_of(found.get("parameters", {}), f"parameters of {what}")


def text_in(found: Mapping[str, object], key: str, what: str) -> str:
    """Return a text that has to be there."""
    if key not in found:
        raise Refusal(f"{what} has no {key}.")
    value = found[key]
    if not isinstance(value, str):
        raise Refusal(f"{key} of {what} is no text.")
    return value


def flag_in(found: Mapping[str, object], key: str, what: str, default: bool = False) -> bool:
    """Return true or false, `default` where nothing is said."""
    value = found.get(key, default)
    if not isinstance(value, bool):
        raise Refusal(f"{key} of {what} is neither true nor false.")
    return value
