"""What a package's own function bodies compute, as vectors: outputs, gates, and their margins.

That is a reference for kernels and for what a runtime makes of the graph. It does not say that the
package equals the original model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from moh_deploy.backends.input_check import check_inputs
from moh_deploy.backends.runner import Runner
from moh_deploy.npz import Array
from moh_deploy.package import LayerInfo, OnnxPackage, RouterLogits, VectorSet, router_logits


def routers_of(package: OnnxPackage) -> tuple[RouterLogits | None, ...]:
    """Return where each layer's router reads its logits; None for one of plain operators."""
    graph = onnx.load(package.model_path, load_external_data=False).graph
    return router_logits(graph, package.manifest.layers)


def values_to_record(package: OnnxPackage) -> list[str]:
    """Return the inner values that a runner has to return for `Recorder`."""
    routers = [router for router in routers_of(package) if router is not None]
    logits = [router.logits[_ROUTED] for router in routers if _ROUTED in router.logits]
    return list(dict.fromkeys((*package.gate_names, *logits)))


@dataclass(frozen=True)
class Recorder:
    """Makes vectors of runs of function bodies.

    Attributes:
        package: The package.
        runner: A session of its function bodies with optimisations off, which also returns
            `values_to_record`.
    """

    package: OnnxPackage
    runner: Runner

    def record(self, inputs: Mapping[str, Array]) -> VectorSet:
        """Run the function bodies.

        The margins of a layer whose scores are not known are infinite: they excuse nothing.

        Raises:
            ConfigError: The inputs do not fit the model.
            BackendError: The runtime failed.
        """
        package = self.package
        results = self.runner.run(inputs)
        gates = tuple(results[name] for name in package.gate_names)
        rows = zip(package.manifest.layers, routers_of(package), gates, strict=True)
        return VectorSet(
            sizes=check_inputs(package.manifest.inputs, inputs),
            inputs=dict(inputs),
            outputs={spec.name: results[spec.name] for spec in package.manifest.outputs},
            gates=gates,
            margins=tuple(_margins(layer, router, array, results) for layer, router, array in rows),
        )


_ROUTED = "routed_logits"


def _margins(
    layer: LayerInfo, router: RouterLogits | None, gates: Array, results: Mapping[str, Array]
) -> Array:
    """Return [B, S]: see `VectorSet.margins`."""
    tokens = gates.shape[:-1]
    if router is None or not router.in_order or _ROUTED not in router.logits:
        return np.full(tokens, np.inf, np.float32)
    margins = margins_of(results[router.logits[_ROUTED]], int(router.attributes["top_k"]))
    if margins.size != np.prod(tokens):
        return np.full(tokens, np.inf, np.float32)
    return margins.reshape(tokens)


def margins_of(routed_logits: Array, top_k: int) -> Array:
    """Return how clear the choice of each token is, [B, S], in units of probabilities.

    Args:
        routed_logits: [B, S, R].
        top_k: Heads that a token chooses.
    """
    wide = routed_logits.astype(np.float64)
    if top_k >= wide.shape[-1]:
        return np.full(wide.shape[:-1], np.inf, np.float32)
    with np.errstate(invalid="ignore"):  # infinities of one sign have no difference
        exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    ranked = -np.sort(-probabilities, axis=-1)  # [B, S, R]
    gaps = np.nan_to_num(ranked[..., top_k - 1] - ranked[..., top_k], nan=0.0)
    margins: Array = gaps.astype(np.float32)
    return margins
