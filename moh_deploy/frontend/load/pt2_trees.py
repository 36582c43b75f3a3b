"""Read a `.pt2` file whose program takes or returns classes that are not known here.

torch.export.load needs each class to be imported and registered, though all that matters of it here
is how many parts it has and what they are called. The file says that: such a class is read as a
dict, or as a tuple where it names no parts.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import IO

import torch
from torch.utils import _pytree as pytree

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.fx.tree_keys import keys_in_spec, names_in_context
from moh_deploy.frontend.load.unpickle import read_without_classes
from moh_deploy.system.bounded_json import parse_json

_SPECS = ("in_spec", "out_spec")


def is_example(member: str) -> bool:
    """Tell whether a member of the archive holds the example inputs."""
    return member.endswith("/data/sample_inputs/model.pt")


def with_known_classes(file: IO[bytes], path: Path, *, drop_example: bool = False) -> IO[bytes]:
    """Return a program's file, or a copy in memory in which all classes are known.

    Args:
        drop_example: Leave the example inputs out.
    """
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        return file  # torch says what is wrong with it
    with archive:
        programs = {
            name: changed
            for name in archive.namelist()
            if "/models/" in name
            and (changed := _with_known_classes(archive.read(name), f"{path}: '{name}'"))
        }
        if not programs and not drop_example:
            file.seek(0)
            return file
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as new:
            for name in archive.namelist():
                dropped = drop_example and is_example(name)
                new.writestr(name, b"" if dropped else programs.get(name) or archive.read(name))
    copy.seek(0)
    return copy


def leaves_without_classes(pickled: bytes, spec: pytree.TreeSpec) -> list[object] | None:
    """Return the leaves of pickled arguments, in the order of a structure; None where its objects
    are not made of the parts that the structure names.
    """
    try:
        leaves = _leaves(read_without_classes(pickled), spec)
    except (KeyError, ValueError, AttributeError):
        return None
    plain = (torch.Tensor, bool, int, float, str, type(None))
    return leaves if all(isinstance(leaf, plain) for leaf in leaves) else None


def _leaves(value: object, spec: pytree.TreeSpec) -> list[object]:
    if spec.is_leaf():
        return [value]
    if isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        named = value if isinstance(value, dict) else value.__dict__
        by_name = {str(key): item for key, item in named.items()}
        parts = [by_name[key] for key in keys_in_spec(spec) or ()]
    pairs = zip(parts, spec.children(), strict=True)
    return [leaf for part, child in pairs for leaf in _leaves(part, child)]


def _with_known_classes(content: bytes, place: str) -> bytes | None:
    """Return the program with other classes; None where all are known."""
    document = parse_json(content, place, error=CheckpointError)
    return json.dumps(document).encode() if _replace_in(document) else None


def _replace_in(value: object) -> bool:
    """Replace unknown classes in all specs; tells whether there was one."""
    found = False
    if isinstance(value, list):
        for item in value:
            found |= _replace_in(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in _SPECS and isinstance(item, str):
                spec = json.loads(item)
                if _replace_in_spec(spec):
                    value[key], found = json.dumps(spec), True
            else:
                found |= _replace_in(item)
    return found


def _replace_in_spec(spec: object) -> bool:
    """Replace unknown classes in a spec: {"type": ..., "context": text, "children_spec": [...]}."""
    found = False
    if isinstance(spec, list):
        for item in spec:
            found |= _replace_in_spec(item)
    elif isinstance(spec, dict):
        children = spec.get("children_spec", [])
        found = _replace_in_spec(children)
        if not _is_known(spec):
            names = names_in_context(_parsed(spec.get("context")), len(children))
            spec["type"] = "builtins.tuple" if names is None else "builtins.dict"
            spec["context"] = json.dumps(names)
            found = True
    return found


def _is_known(spec: dict[str, object]) -> bool:
    known = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE
    if spec.get("type") == "collections.namedtuple":
        return _parsed(spec.get("context")) in known
    return spec.get("type") is None or spec["type"] in known


def _parsed(context: object) -> object:
    """Read a context: most classes keep theirs as JSON, and any text may be one."""
    try:
        return json.loads(context) if isinstance(context, str) else context
    except ValueError:
        return context
