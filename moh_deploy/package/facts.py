"""Facts that the manifest and another file of a package state alike, or the package is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from moh_deploy.errors import PackageError
from moh_deploy.package.manifest import Manifest


class StatedFact(NamedTuple):
    """A statement of the manifest, and the same as another file of the package shows it.

    Attributes:
        name: Key path; of a layer, the name of its field.
        said: The value in the manifest.
        shown: The value that the other file shows.
        layer: Number of the layer; None for a fact of the whole model.
    """

    name: str
    said: object
    shown: object
    layer: int | None = None


def with_shown(manifest: Manifest, facts: Iterable[StatedFact]) -> Manifest:
    """Return a manifest whose layers say what these facts show."""
    layers = list(manifest.layers)
    for fact in facts:
        if fact.layer is not None:
            shown: dict[str, Any] = {fact.name: fact.shown}
            layers[fact.layer] = replace(layers[fact.layer], **shown)
    return replace(manifest, layers=tuple(layers))


def check_facts(path: Path, facts: Iterable[StatedFact], *, shown_by: str) -> None:
    """Refuse a manifest that says something else than another file.

    Args:
        path: The manifest.
        shown_by: Name of the other file.

    Raises:
        PackageError: The first fact in which they differ, with both values.
    """
    for name, said, shown, layer in facts:
        if said != shown:
            key = name if layer is None else f"layers[{layer}].{name}"
            raise PackageError(
                f"{path}: key '{key}' says {_text(said)}, {shown_by} has {_text(shown)}.",
                hint="Export the model again, or get the package again from where it was made.",
            )


def _text(value: object) -> str:
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_LONGEST = 200
