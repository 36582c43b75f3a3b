"""Say what is wrong with a baseline file: where, what it is, what was expected."""

from __future__ import annotations

import json

from pydantic import ValidationError
from pydantic_core import ErrorDetails

Path = tuple[int | str, ...]

_SLACK = {"factor": "a number of at least 1", "plus": "a number of at least 0"}
_MOST_SHOWN = 60


def explained(error: ValidationError) -> str:
    """Return half a sentence on the first problem."""
    found = [
        (_path(error_details), error_details) for error_details in error.errors(include_url=False)
    ]
    # A figure that is no interval is not one of the wrong type: that is the other way to write it.
    path, item = max(found, key=lambda item: (len(item[0]), not item[1]["type"].endswith("_type")))
    where = ".".join(map(str, path)) or "the file"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    if item["type"] == "extra_forbidden":
        return f"{where} is not a known key"
    if item["type"] == "missing":
        return f"{where} is missing"
    return f"{where} is {_shown(item['input'])}, expected {_expected(path)}"


def _path(item: ErrorDetails) -> Path:
    """Return where it is in the file: SECTION.figures.GROUP.NAME, and behind it which of the ways
    to write a figure was tried, which is not in the file."""
    place = item["loc"]
    return (*place[:4], *place[5:]) if place[1:2] == ("figures",) else place


def _expected(path: Path) -> str:
    if path[:1] == ("slack",):
        return _SLACK.get(str(path[2]), "a number") if len(path) == 3 else "an object"
    if path[1:] == ("machine",):
        return "a text"
    if path[1:] == ("figures",):
        return "an object of at least one group of figures"
    if len(path) == 4:
        return "a finite number, or an object of such: value, low and high"
    return "a finite number" if len(path) > 4 else "an object"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
