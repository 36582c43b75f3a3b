"""Open the package or engine of a bundle to be served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from moh_deploy import __version__
from moh_deploy.errors import PackageError
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.served_model import ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle_json import PATHS, read_bundle, require_unchanged


def open_bundle(root: Path, *, instances: int | None = None) -> ServedModel:
    """Open the model of a bundle with the bundle's settings.

    Args:
        root: The bundle.
        instances: How many of it share the machine's cores; None for the bundle's own number.

    Raises:
        PackageError: It is no bundle, has changed since it was written, or is of another version.
        BackendError: The runtime is not there, or refuses the model.
        ValidationError: It answers a recorded run wrongly.
    """
    path, settings = bundled_model(root)
    if instances is not None:
        settings = replace(settings, instances=instances)
    return open_served(find_deployed(path), settings)


def bundled_model(root: Path) -> tuple[Path, ServingSettings]:
    """Return the package or engine in a bundle, and its settings with paths that lead there.

    Raises:
        PackageError: It is no bundle, has changed since it was written, or is of another version.
    """
    bundle = read_bundle(root)
    made_by = bundle.versions["moh-deploy"]
    if made_by != __version__:
        raise PackageError(
            f"{root} was written by moh-deploy {made_by}, this is {__version__}.",
            hint="Write the bundle again, or install that version.",
        )
    require_unchanged(root, bundle)
    found = {name: getattr(bundle.settings, name) for name in PATHS}
    placed: Any = {name: str(root / path) for name, path in found.items() if path is not None}
    return root / bundle.served, replace(bundle.settings, **placed)
