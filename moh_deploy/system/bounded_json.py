"""Read JSON that others wrote: no name twice, no nesting that Python's own readers fail at."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

from moh_deploy.errors import MoHDeployError, PackageError
from moh_deploy.system.bounded_file import read_bytes

# Far more than any manifest or report has, and little enough to be held in memory.
MOST_JSON_BYTES = 64 * 2**20
DEEPEST = 100


def read_json(
    path: Path, *, error: type[MoHDeployError], most_bytes: int = MOST_JSON_BYTES
) -> object:
    """Read a JSON file into plain Python types.

    Args:
        error: What to raise if it cannot be read, or is not JSON.
        most_bytes: What it may hold.

    Raises:
        FileNotFoundError: It is missing: only the caller knows what that means.
    """
    return parse_json(read_bytes(path, most_bytes=most_bytes, error=error), f"{path}", error=error)


def has_keys(path: Path, keys: set[str]) -> bool:
    """Tell whether a file can be read, and is a JSON object with these keys, whatever they hold."""
    try:
        content = read_json(path, error=PackageError)
    except (OSError, PackageError):
        return False
    return isinstance(content, dict) and keys <= content.keys()


def parse_json(
    content: bytes | bytearray | str, source: str, *, error: type[MoHDeployError]
) -> object:
    """Parse JSON into plain Python types.

    Args:
        source: Where it comes from; it opens the error message.
        error: What to raise if it is not JSON, names a key of an object twice, or is nested deeper
            than `DEEPEST` levels.
    """
    try:
        found: object = json.loads(content, object_pairs_hook=_without_repeats)
        _check_values(found)
    except RecursionError:
        raise error(f"{source}: is not valid JSON: {_TOO_DEEP}.") from None
    except ValueError as problem:
        raise error(f"{source}: is not valid JSON: {problem}.") from problem
    return found


_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object's entries, and refuse a key that is there twice.

    A merge may leave a key twice, and Python would take the last one.
    """
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"'{name[:200]}' is there twice")
        found[name] = value
    return found


def _check_values(value: object) -> None:
    """Refuse what Python reads and what goes on from here fails at: some hundred levels of nesting,
    and half a surrogate pair, which no text can be written with."""
    # Level by level and not by recursion, which deep nesting would exhaust. What types a level has
    # is asked first: a million numbers are passed at once.
    level = [value]
    for depth in range(DEEPEST + 1):
        types = set(map(type, level))
        if depth == DEEPEST and types & {dict, list}:
            raise ValueError(_TOO_DEEP)
        inner: list[object] = []
        if dict in types:
            for found in level:
                if isinstance(found, dict):
                    inner += found.keys()
                    inner += found.values()
        if list in types:
            lists = level if len(types) == 1 else [item for item in level if type(item) is list]
            inner += chain.from_iterable(cast(list[list[object]], lists))
        if str in types:
            for text in level:
                if isinstance(text, str) and not text.isascii():
                    text.encode()  # UnicodeEncodeError is a ValueError
        level = inner


# JSON for machines. Python's own encoder writes a bare NaN, which other readers refuse.


def to_json_text(content: Mapping[str, object]) -> str:
    """Encode plain JSON types; NaN and infinities become strings, as "NaN" and "-Infinity"."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
