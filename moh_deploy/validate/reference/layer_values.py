"""The inner values of MoH layers in a run: gates, ranked scores, and fingerprints of attention.

They are inner values of model.onnx, which a session returns when it is asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moh_deploy.graph.layer_sources import NO_SOURCES, LayerSources, layer_sources
from moh_deploy.graph.router_logits import RouterLogits, attention_values, router_logits
from moh_deploy.package import OnnxPackage, fingerprint, load_without_weights
from moh_deploy.system.npz import Array

_ROUTED = "routed_logits"


@dataclass(frozen=True)
class LayerValues:
    """The names of one layer's inner values in a model, and the means to read them.

    Attributes:
        gates: Name of the gates.
        attention: Name of the layer's attention result, gates included; None where the graph has no
            such value.
        router: Where its MoHRouter reads logits; None where plain operators make the gates.
        sources: What they are computed from.
    """

    gates: str
    attention: str | None
    router: RouterLogits | None
    sources: LayerSources = NO_SOURCES

    @property
    def logits(self) -> str | None:
        """Name of what the scores are made of; None where the layer ranks nothing that is known."""
        # Scores are compared token by token, so the router has to have tokens in the order of the
        # gates.
        if self.router is None or not self.router.in_order:
            return None
        return self.router.logits.get(_ROUTED)

    @property
    def names(self) -> list[str]:
        """The inner values that a session has to return."""
        return [name for name in (self.gates, self.logits, self.attention) if name is not None]

    def scores(self, results: Mapping[str, Array], tokens: tuple[int, ...]) -> Array | None:
        """Return the scores that the router ranked, [B, S, candidates] in float32.

        Args:
            results: What the session returned.
            tokens: [B, S], as of the gates.
        """
        if self.logits is None or self.logits not in results:
            return None
        assert self.router is not None
        logits = results[self.logits]
        candidates = logits.shape[-1]
        # Not one row of logits for each token: nothing could be compared token by token.
        if logits.size != np.prod(tokens) * candidates:
            return None
        scores = self.router.form.scores(logits).astype(np.float32)
        return scores.reshape(*tokens, candidates)

    def fingerprint(self, results: Mapping[str, Array], tokens: tuple[int, ...]) -> Array | None:
        """Return the fingerprint of what the attention computed, [B, S, NUMBERS]; arguments are
        those of `scores`."""
        if self.attention is None or self.attention not in results:
            return None
        value = results[self.attention]
        if value.ndim == 4:  # [B, H, S, D], as the operator has it where its inputs are so
            value = value.transpose(0, 2, 1, 3)
        # Other axes in front than [B, S], as where attention runs over windows.
        if not value.size or value.shape[:2] != tokens:
            return None
        return fingerprint(value.reshape(*tokens, -1))


def layer_values(package: OnnxPackage) -> tuple[LayerValues, ...]:
    """Return where each layer's inner values are, in the manifest's order."""
    graph = load_without_weights(package.model_path).graph
    layers = package.manifest.layers
    found = zip(
        layers,
        attention_values(graph, layers),
        router_logits(graph, layers),
        layer_sources(graph, layers),
        strict=True,
    )
    return tuple(
        LayerValues(layer.gates, attention, router, sources)
        for layer, attention, router, sources in found
    )


def names_to_return(package: OnnxPackage) -> tuple[str, ...]:
    """Return the inner values that a session has to return for its layers to be compared."""
    values = layer_values(package)
    # Layers may share a value; a session is asked for each once.
    return tuple(dict.fromkeys(name for layer in values for name in layer.names))
