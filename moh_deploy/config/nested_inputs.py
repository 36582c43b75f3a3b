"""Inputs of a configuration that are written as they are nested, brought to a flat list.

    inputs:
      ids: {shape: [batch, seq], dtype: int64}
      past: [{key: {shape: [batch, past, 8]}, value: {shape: [batch, past, 8]}}]
      use_cache: false

is the same as a list of tensors called `ids`, `past.0.key` and `past.0.value`, and a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

ConstantValue = bool | int | float | str | None
_Key = str | int
_OF_A_TENSOR = {"shape", "dtype", "range"}


def flat_document(
    document: Mapping[str, object],
) -> tuple[Mapping[str, object], list[tuple[_Key, ...]] | None]:
    """Return a document whose inputs are a list of tensors.

    Returns:
        The document, and the key path that each tensor has in the given one; None where its inputs
        are no mapping.
    """
    inputs = document.get("inputs")
    if not isinstance(inputs, dict):
        return document, None
    leaves = [leaf for name, value in inputs.items() for leaf in _leaves((name,), value)]
    tensors = [(path, value) for path, value in leaves if isinstance(value, dict)]
    constants = {_dotted(path): value for path, value in leaves if not isinstance(value, dict)}
    flat = {
        **document,
        "inputs": [{**value, "name": _dotted(path)} for path, value in tensors],
    }
    given = document.get("constants", {})
    if constants and isinstance(given, dict):
        flat["constants"] = {**given, **constants}
    return flat, [path for path, _ in tensors]


def in_document(
    location: tuple[_Key, ...], paths: Sequence[tuple[_Key, ...]] | None
) -> tuple[_Key, ...]:
    """Return where a place of a flattened document is in the given one."""
    if paths is None or len(location) < 2:
        return location
    if location[0] == "constants":
        return ("inputs", *str(location[1]).split("."))
    if location[0] == "inputs" and isinstance(location[1], int):
        return ("inputs", *paths[location[1]], *location[2:])
    return location


def _leaves(path: tuple[_Key, ...], value: object) -> Iterator[tuple[tuple[_Key, ...], object]]:
    """The tensors and constants in a value; what has a shape is a tensor."""
    if isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves((*path, index), item)
    elif isinstance(value, dict) and not _is_tensor(value):
        for key, item in value.items():
            yield from _leaves((*path, key), item)
    else:
        yield path, value


def _is_tensor(value: Mapping[object, object]) -> bool:
    if isinstance(value.get("shape"), list):
        return True
    # Its shape may be missing, or wrong, which is told of a tensor.
    nested = any(isinstance(item, dict) for item in value.values())
    return value.keys() <= _OF_A_TENSOR and not nested


def _dotted(path: tuple[_Key, ...]) -> str:
    return ".".join(map(str, path))
