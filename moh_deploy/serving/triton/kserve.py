"""Write the YAML that lets KServe serve a bundle with Triton, with a canary.

Source: https://kserve.github.io/website/docs/reference/crd-api
"""

from __future__ import annotations

import re

from moh_deploy import __version__
from moh_deploy.errors import ConfigError
from moh_deploy.serving.settings import ServingSettings

_LONGEST_NAME = 40  # KServe adds to it, and Kubernetes takes 63 characters


def kserve_text(
    settings: ServingSettings,
    *,
    image: str | None,
    storage: str | None,
    backend_config: str | None = None,
    has_probe: bool = False,
) -> str:
    """Return a ServingRuntime and an InferenceService that uses it.

    Args:
        settings: Name, instances and threads: their product is the cores to ask for.
        image: The container: Triton, with moh-deploy for the Python backend.
        storage: Where the cluster finds the bundle: `pvc://models/digits`.
        backend_config: The server's option for a backend.
        has_probe: The bundle has a script that asks for an answer.

    Raises:
        ConfigError: The name has no letter or digit, which Kubernetes needs.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moh_deploy.serving.triton"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("kserve.yaml.jinja").render(
        name=_kubernetes_name(settings.name),
        image=image or f"triton-with-moh-deploy:{__version__}",
        storage=storage or f"pvc://models/{settings.name}",
        cores=settings.instances * (settings.threads or 1),
        backend_config=backend_config,
        has_probe=has_probe,
        is_written=settings.guard,
    )


def _kubernetes_name(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    if not plain:
        raise ConfigError(f"name is '{name}', expected a letter or a digit, for Kubernetes.")
    return plain if plain[0].isalpha() else f"moh-{plain}"
