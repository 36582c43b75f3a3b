"""Refuse an export that replaced fewer MoH layers than its caller requires."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.config.export_config import ExportConfig, RequiredLayers
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.package import LayerInfo, NearMiss
from moh_deploy.report.numbers import count
from moh_deploy.runtime.layers_text import not_layers, reasons


def required_layers(options: ExportOptions, config: ExportConfig) -> RequiredLayers | None:
    """Return how many layers are required, by the option or else by the configuration.

    Raises:
        ConfigError: It is neither a number from 0 on nor `all`.
    """
    wanted = config.require_layers if options.require_layers is None else options.require_layers
    if wanted is None or wanted == "all" or (isinstance(wanted, int) and wanted >= 0):
        return wanted
    raise ConfigError(f"require_layers is '{wanted}', expected a number from 0 on, or all.")


def require_layers(
    wanted: RequiredLayers | None, layers: Sequence[LayerInfo], near_misses: Sequence[NearMiss]
) -> None:
    """Check that enough layers were replaced.

    Args:
        wanted: At least so many; `all` for all that were recognised, 1 or more, with no near miss
            beside them.

    Raises:
        ExportError: Fewer were, or something was not; says what, and where it was lost.
    """
    kept = [layer for layer in layers if not layer.replaced]
    replaced = len(layers) - len(kept)
    # A gate must not pass on a model in which recognition finds no layer.
    whole = replaced > 0 and not kept and not near_misses
    if whole if wanted == "all" else replaced >= (wanted or 0):
        return
    expected = "all, 1 or more, and no near miss" if wanted == "all" else f"at least {wanted}"
    raise ExportError(
        "\n".join(
            [
                f"{count(replaced, 'MoH layer')} of {len(layers)} became operators, expected"
                f" {expected} (require_layers).",
                *reasons(kept),
                *not_layers(len(layers), near_misses, 0),
            ]
        ),
        hint="Change what is named above, or require fewer layers; --require-layers 0 takes a model"
        " without any.",
    )
