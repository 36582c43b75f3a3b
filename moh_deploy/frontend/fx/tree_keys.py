"""Name the parts of a container by what its class's registration with PyTorch keeps of it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple

from torch.utils import _pytree as pytree


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
    """Return the keys or the names of fields of a structure's parts; None if it has none."""
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
