"""Look into what holds tensors, and build it again: lists, dicts, dataclasses, registered classes.

A class of another kind is opened as it was registered with PyTorch's pytrees, as Hugging Face
registers its outputs. Nothing is registered here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass

from torch.utils import _pytree as pytree

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.tree_keys import names_in_context

_BUILTIN = {"list": list, "tuple": tuple, "dict": dict}


@dataclass(frozen=True)
class Parts:
    """An opened container.

    Attributes:
        container: `list`, `tuple`, `dict`, or the full name of a class.
        context: What is needed beside the items to build it again: keys, names of fields, or what
            the registration of its class says.
        keys: What leads to each item: a number, a key, the name of a field.
        items: What is in it.
    """

    container: str
    context: object
    keys: tuple[str, ...]
    items: tuple[object, ...]


def open_container(value: object) -> Parts | None:
    """Open a container; None for anything that is not known to be one."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return Parts(type(value).__name__, None, _numbers(len(value)), tuple(value))
    if type(value) is dict:
        return Parts("dict", list(value), tuple(map(str, value)), tuple(value.values()))
    cls = type(value)
    if pytree.is_namedtuple_class(cls):
        assert isinstance(value, tuple)
        return Parts(_name(cls), None, cls._fields, tuple(value))  # type: ignore[attr-defined]
    if cls in pytree.SUPPORTED_NODES:
        return _registered(value)
    if is_dataclass(value):
        names = tuple(field.name for field in fields(value) if field.init)
        items = tuple(getattr(value, name) for name in names)
        return Parts(_name(cls), list(names), names, items)
    return None


def built(container: str, context: object, items: Sequence[object]) -> object:
    """Build what `open_container` opened, with other items.

    Raises:
        ConfigError: The class of the container is not known here, or does not take the items.
    """
    if container in ("list", "tuple"):
        return _BUILTIN[container](items)
    cls = dict if container == "dict" else _class_named(container)
    try:
        if pytree.is_namedtuple_class(cls):
            return cls(*items)
        if cls in pytree.SUPPORTED_NODES and cls is not dict:
            return pytree.SUPPORTED_NODES[cls].unflatten_fn(list(items), context)
        named = dict(zip(context, items, strict=True))  # type: ignore[call-overload]
        return named if cls is dict else cls(**named)
    except Exception as error:  # the user's own code
        raise ConfigError(
            f"a {container} cannot be built from its {len(items)} parts:"
            f" {type(error).__name__}: {error}.",
            hint="If it is registered with torch.utils._pytree, its unflatten function has to take"
            " a context as JSON gives it back: lists for tuples.",
        ) from error


def without_classes(value: object) -> object:
    """Return a value with dicts, lists and tuples for all containers: what torch.export opens."""
    parts = open_container(value)
    if parts is None:
        return value
    items = [without_classes(item) for item in parts.items]
    if parts.container in _BUILTIN:
        return built(parts.container, parts.context, items)
    return dict(zip(parts.keys, items, strict=True))


def _registered(value: object) -> Parts:
    cls = type(value)
    node = pytree.SUPPORTED_NODES[cls]
    children, context = node.flatten_fn(value)
    items = tuple(children)
    if node.flatten_with_keys_fn is not None:
        keyed, _ = node.flatten_with_keys_fn(value)
        keys = [str(_key(entry)) for entry, _ in keyed]
    else:
        keys = names_in_context(context, len(items)) or []
    distinct = len(set(keys)) == len(items)
    return Parts(_name(cls), context, tuple(keys) if distinct else _numbers(len(items)), items)


def _key(entry: object) -> object:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_named(name: str) -> type:
    """Find a class that was imported already: nothing is imported on a package's word."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:count]))
        for part in parts[count:]:
            found = getattr(found, part, None)
        if isinstance(found, type) and _can_be_built(found):
            return found
    registered: list[type] = [cls for cls in pytree.SUPPORTED_NODES if isinstance(cls, type)]
    for cls in reversed(registered):
        if _name(cls) == name:  # one that was made within a function
            return cls
    raise ConfigError(
        f"the model is called with a {name}, which is not known here.",
        hint="The code that builds the model has to import its module; a class that is no dataclass"
        " has to be registered there: torch.utils._pytree.register_pytree_node.",
    )


def _can_be_built(cls: type) -> bool:
    return cls in pytree.SUPPORTED_NODES or pytree.is_namedtuple_class(cls) or is_dataclass(cls)
