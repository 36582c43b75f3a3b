"""Inputs of a configuration that are written as they are nested, brought to a flat list.

    inputs:
      ids: {shape: [batch, seq], dtype: int64}
      past: [{key: {shape: [batch, past, 8]}, value: {shape: [batch, past, 8]}}]
      use_cache: false

is the same as a list of tensors called `ids`, `past.0.key` and `past.0.value`, and a constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moh_deploy.errors import ConfigError
from moh_deploy.system.suggest import shortened

ConstantValue = bool | int | float | str | None
_Key = str | int
Places = Mapping[tuple[_Key, ...], tuple[_Key, ...]]
"""Place of each tensor, and of each constant that was among the inputs, to that in the document."""

_OF_A_TENSOR = {"shape", "dtype", "range"}


def flat_document(
    document: Mapping[str, object], source: str
) -> tuple[Mapping[str, object], Places]:
    """Return a document whose inputs are a list of tensors, and where they are in the given one.

    Args:
        document: As it was read.
        source: What messages call it.

    Raises:
        ConfigError: A constant is among the inputs and in `constants`, too.
    """
    inputs = document.get("inputs")
    if not isinstance(inputs, dict):
        return document, {}
    leaves = [leaf for name, value in inputs.items() for leaf in _leaves((name,), value)]
    tensors = [(path, value) for path, value in leaves if isinstance(value, dict)]
    others = [(path, value) for path, value in leaves if not isinstance(value, dict)]
    constants = {_dotted(path): value for path, value in others}
    flat = {
        **document,
        "inputs": [{**value, "name": _dotted(path)} for path, value in tensors],
    }
    given = document.get("constants", {})
    if constants and isinstance(given, dict):
        if both := sorted(given.keys() & constants.keys()):
            raise ConfigError(
                f"{source}: {shortened(both)} is in inputs and in constants, expected one of them."
            )
        flat["constants"] = {**given, **constants}
    return flat, {
        **{("inputs", at): ("inputs", *path) for at, (path, _) in enumerate(tensors)},
        **{("constants", _dotted(path)): ("inputs", *path) for path, _ in others},
    }


def in_document(location: tuple[_Key, ...], places: Places) -> tuple[_Key, ...]:
    """Return where a place of a flattened document is in the given one."""
    return (*places.get(location[:2], location[:2]), *location[2:])


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
