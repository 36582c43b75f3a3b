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

from torch.utils import _pytree as pytree

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.fx.tree_keys import names_in_context
from moh_deploy.system.bounded_json import parse_json

_SPECS = ("in_spec", "out_spec")


def with_known_classes(file: IO[bytes], path: Path) -> IO[bytes]:
    """Return a program's file, or a copy in memory in which all classes are known."""
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
        if not programs:
            file.seek(0)
            return file
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as new:
            for name in archive.namelist():
                new.writestr(name, programs.get(name) or archive.read(name))
    copy.seek(0)
    return copy


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
