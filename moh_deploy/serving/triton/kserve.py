"""Write the YAML that lets KServe serve a bundle with Triton, with a canary.

Source: https://kserve.github.io/website/docs/reference/crd-api
"""

from __future__ import annotations

import re

from moh_deploy import __version__
from moh_deploy.errors import ConfigError
from moh_deploy.serving.triton.bundle_json import Bundle
from moh_deploy.serving.triton.template_files import filled

_LONGEST_NAME = 40  # KServe adds to it, and Kubernetes takes 63 characters


def kserve_text(
    bundle: Bundle, *, image: str | None, storage: str | None, has_probe: bool = False
) -> str:
    """Return a ServingRuntime and an InferenceService that uses it.

    Args:
        bundle: Name, instances and threads: their product is the cores to ask for.
        image: The container: Triton, with moh-deploy for the Python backend.
        storage: Where the cluster finds the bundle: `pvc://models/digits`.
        has_probe: The bundle has a script that asks for an answer.

    Raises:
        ConfigError: The name has no letter or digit, which Kubernetes needs.
    """
    settings = bundle.settings
    return filled(
        "kserve.yaml",
        name=_kubernetes_name(settings.name),
        image=image or f"triton-with-moh-deploy:{__version__}",
        storage=storage or f"pvc://models/{settings.name}",
        cores=settings.instances * (settings.threads or 1),
        option=bundle.backend_config("/mnt/models"),
        has_probe=has_probe,
        is_written=settings.guard,
    )


def _kubernetes_name(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    if not plain:
        raise ConfigError(f"name is '{name}', expected a letter or a digit, for Kubernetes.")
    return plain if plain[0].isalpha() else f"moh-{plain}"
