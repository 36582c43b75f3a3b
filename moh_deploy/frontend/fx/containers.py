"""Look into what holds tensors, and build it again: lists, dicts, dataclasses, registered classes.

A class of another kind is opened as it was registered with PyTorch's pytrees, as Hugging Face
registers its outputs. Nothing is registered here.
"""

import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils import _pytree as pytree

from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.graph import is_tensor

# Name the parts of a container by what its class's registration with PyTorch keeps of it.


def leaf_keys(spec: pytree.TreeSpec) -> list[tuple[str, ...]]:
    """Return the keys that lead to each leaf of a structure: a number, a key, the name of a field.

    Nothing is built, so that no code of a class is run.
    """
    if spec.is_leaf():
        return [()]
    children = spec.children()
    names = keys_in_spec(spec) or [str(index) for index in range(len(children))]
    return [
        (name, *rest)
        for name, child in zip(names, children, strict=True)
        for rest in leaf_keys(child)
    ]


def keys_in_spec(spec: pytree.TreeSpec) -> list[str] | None:
    """Return the keys or the names of fields of a structure's parts, or None."""
    if spec.type in (dict, OrderedDict):
        return [str(key) for key in spec.context]
    if spec.type is defaultdict:
        return [str(key) for key in spec.context[1]]
    if spec.type is namedtuple:
        return list(spec.context._fields)
    return names_in_context(spec.context, spec.num_children)


def names_in_context(context: object, count: int) -> list[str] | None:
    """Return the names of a container's `count` parts; None if the context does not tell them.

    Args:
        context: A list of names, as Hugging Face registers its outputs; or that and the names that
            are None, as torch.export.register_dataclass keeps them.
    """
    for names in (context, context[0] if isinstance(context, (list, tuple)) and context else None):
        if isinstance(names, (list, tuple)) and len(names) == count:
            texts = [name for name in names if isinstance(name, str)]
            if len(texts) == count:
                return texts
    return None


_BUILTIN = {"list": list, "tuple": tuple, "dict": dict}


@dataclass(frozen=True)
class Parts:
    """The parts of an opened container."""

    container: str  # `list`, `tuple`, `dict`, or the full name of a class
    # What is needed beside the items to build it again: keys, names of fields, or what the
    # registration of its class says.
    context: object
    keys: tuple[str, ...]  # what leads to each item: a number, a key, the name of a field
    items: tuple[object, ...]  # what is in it


def open_container(value: object) -> Parts | None:
    """Open a container; None for anything that is not known to be one."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return Parts(type(value).__name__, None, _numbers(len(value)), tuple(value))
    if type(value) is dict:
        return Parts("dict", list(value), tuple(map(str, value)), tuple(value.values()))
    cls = type(value)
    if pytree.is_namedtuple_class(cls):
        assert isinstance(value, tuple)
        return Parts(name_of(cls), None, cls._fields, tuple(value))  # type: ignore[attr-defined]
    if cls in pytree.SUPPORTED_NODES:
        return _registered(value)
    if is_dataclass(value):
        names = tuple(field.name for field in fields(value) if field.init)
        items = tuple(getattr(value, name) for name in names)
        return Parts(name_of(cls), list(names), names, items)
    return None


def built(container: str, context: Any, items: Sequence[object]) -> object:
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
        named = dict(zip(context, items, strict=True))
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
        # PyTorch's keys of sequences, mappings and attributes have an idx, a key or a name.
        entries = [entry for entry, _ in node.flatten_with_keys_fn(value)[0]]
        keys = [
            str(next((getattr(e, a) for a in ("key", "name", "idx") if hasattr(e, a)), e))
            for e in entries
        ]
    else:
        keys = names_in_context(context, len(items)) or []
    distinct = len(set(keys)) == len(items)
    return Parts(name_of(cls), context, tuple(keys) if distinct else _numbers(len(items)), items)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def name_of(cls: type) -> str:
    """Return the full name of a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_named(name: str) -> type:
    """Find a class that was imported already: nothing is imported on a package's word."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        found: object = sys.modules.get(".".join(parts[:count]))
        for part in parts[count:]:
            found = getattr(found, part, None)
        if isinstance(found, type) and (
            found in pytree.SUPPORTED_NODES
            or pytree.is_namedtuple_class(found)
            or is_dataclass(found)
        ):
            return found
    registered: list[type] = [cls for cls in pytree.SUPPORTED_NODES if isinstance(cls, type)]
    for cls in reversed(registered):
        if name_of(cls) == name:  # one that was made within a function
            return cls
    raise ConfigError(
        f"the model is called with a {name}, which is not known here.",
        hint="The code that builds the model has to import its module; a class that is no dataclass"
        " has to be registered there: torch.utils._pytree.register_pytree_node.",
    )


# Names of a model's outputs, however they are nested.


def tensors_of(outputs: object) -> list[torch.Tensor]:
    """The tensors in a model's return value, in order; numbers and None are left out."""
    return [
        leaf
        for leaf in pytree.tree_leaves(without_classes(outputs))
        if isinstance(leaf, torch.Tensor)
    ]


def output_nodes(program: ExportedProgram) -> list[Node]:
    """The nodes of a program's output tensors, in order."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    return [leaf for leaf in pytree.tree_leaves(output.args) if is_tensor(leaf)]


def output_names(
    program: ExportedProgram, given: Sequence[str], inputs: Sequence[str] = ()
) -> list[str]:
    """Return a name for each output tensor of a program.

    Args:
        given: The user's names, in order; empty to name outputs after their place in the return
            value: `logits`, `cache.0.1`.
        inputs: Names of the model's inputs, which no output may have. A place of that name is
            called `NAME_out`.

    Raises:
        ConfigError: If `given` has another number of names than the model has outputs, a name
            twice, or that of an input.
    """
    # {"logits": a, "cache": [(k, v)]} -> logits, cache.0.0, cache.0.1
    output = next(node for node in program.graph.nodes if node.op == "output")
    flat = pytree.tree_leaves(output.args, is_leaf=lambda leaf: leaf is None)
    signature = program.module_call_graph[0].signature
    if signature is None or signature.out_spec.num_leaves != len(flat):
        paths: list[tuple[str, ...]] = [(str(index),) for index in range(len(flat))]
    else:
        nested = pytree.tree_unflatten(list(range(len(flat))), signature.out_spec)
        paths = _leaf_paths(nested)
    names = [".".join(path) for path, leaf in zip(paths, flat, strict=True) if is_tensor(leaf)]
    if names == [""]:
        names = ["output"]
    names = [name if name and not name[0].isdigit() else f"output_{name}" for name in names]
    natural = [f"{name}_out" if name in inputs else name for name in names]
    if not given:
        return natural
    if len(given) != len(natural):
        raise ConfigError(
            f"{len(given)} output names are given ({', '.join(given)}), but the model has"
            f" {len(natural)} output tensors ({', '.join(natural)})."
        )
    taken = [*inputs, *given]
    for name in given:
        if taken.count(name) > 1:
            raise ConfigError(
                f"output name '{name}' is given twice, or is the name of an input.",
                hint=f"The inputs are {', '.join(inputs)}.",
            )
    return list(given)


def _leaf_paths(value: object) -> list[tuple[str, ...]]:
    parts = open_container(value)
    if parts is None:
        return [()]
    return [
        (key, *rest)
        for key, item in zip(parts.keys, parts.items, strict=True)
        for rest in _leaf_paths(item)
    ]
