"""What a layer's choice means for its nodes.

A node of domain `moh` runs on a kernel where there is one. The same node of domain `moh.dense` runs
as its function body, on purpose: no kernel is ever registered for that domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moh_deploy.errors import ConfigError
from moh_deploy.package.manifest import Choice, LayerInfo
from moh_deploy.suggest import did_you_mean

KERNEL_DOMAIN, DENSE_DOMAIN = "moh", "moh.dense"

CHOICES: tuple[Choice, ...] = ("dense", "sparse", "projected")


def choices_for(layer: LayerInfo) -> tuple[Choice, ...]:
    """Return what may be chosen for a layer, the plainest first; nothing if it was not replaced."""
    if layer.node is None:
        return ()
    return CHOICES if projections(layer) else CHOICES[:2]


def current_choice(layer: LayerInfo) -> Choice | None:
    """Return how a layer is run; where nobody chose, kernels run all that they can."""
    return layer.choice or (choices_for(layer) or (None,))[-1]


def projections(layer: LayerInfo) -> tuple[str, ...]:
    """Return the names of the projection nodes that a layer has."""
    names = (layer.query_projection, layer.output_projection)
    return tuple(name for name in names if name is not None)


def node_domains(layers: Sequence[LayerInfo]) -> dict[str, str]:
    """Return the domain that each attention and projection node belongs to, by the choices."""
    domains: dict[str, str] = {}
    for layer in layers:
        if layer.node is not None:
            dense = current_choice(layer) == "dense"
            domains[layer.node] = DENSE_DOMAIN if dense else KERNEL_DOMAIN
        kernels = current_choice(layer) == "projected"
        domains |= dict.fromkeys(projections(layer), KERNEL_DOMAIN if kernels else DENSE_DOMAIN)
    return domains


def with_choices(layers: Sequence[LayerInfo], choices: Mapping[str, str]) -> tuple[LayerInfo, ...]:
    """Return the layers with the choices that somebody made for some of them.

    Args:
        layers: The package's layers.
        choices: Path of a layer, or `all`, to its choice; a path wins over `all`, which means for
            each layer the nearest that it has.

    Raises:
        ConfigError: No replaced layer has that path, or it has no such choice; or no layer at all
            has what `all` are to be.
    """
    possible = {layer.path: choices_for(layer) for layer in layers if choices_for(layer)}
    for path, choice in choices.items():
        _check(path, choice, possible)
    return tuple(_chosen(layer, choices) for layer in layers)


def asked_choice(layer: LayerInfo, choices: Mapping[str, str]) -> str | None:
    """Return what somebody's choices ask of a layer, whether it has that or not."""
    return choices.get(layer.path, choices.get("all"))


def _chosen(layer: LayerInfo, choices: Mapping[str, str]) -> LayerInfo:
    asked, allowed = asked_choice(layer, choices), choices_for(layer)
    if asked is None or not allowed:
        return layer
    # Of `all=projected`, a layer without projections has `sparse`.
    nearest = next((choice for choice in allowed if choice == asked), allowed[-1])
    return replace(layer, choice=nearest)


def _check(path: str, choice: str, possible: Mapping[str, Sequence[Choice]]) -> None:
    if path != "all" and path not in possible:
        raise ConfigError(
            f"no layer '{path}' has anything to choose; the package has:"
            f" {', '.join(possible) or 'none'}.",
            hint=did_you_mean(path, possible) or None,
        )
    allowed = max(possible.values(), key=len, default=()) if path == "all" else possible[path]
    if choice not in allowed:
        cannot = "no layer can" if path == "all" else f"layer '{path}' cannot"
        raise ConfigError(
            f"{cannot} be '{choice}', only {', '.join(allowed) or 'none'}.",
            hint=did_you_mean(choice, allowed) or None,
        )
