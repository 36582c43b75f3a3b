"""Record runs of a package's own function bodies as vectors: outputs, gates and margins.

That is a reference for kernels and for what a runtime makes of the graph. It does not say that the
package equals the original model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import FUNCTION_BODIES, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values, names_to_return


@dataclass(frozen=True)
class ScoredRun:
    """One run of function bodies.

    Attributes:
        vectors: What they computed.
        is_scored: [B, S] for each layer: the token chose among scores that are known, and numbers.
        has_nan: [B, S] for each layer: it chose among scores that are known, and not all numbers.
    """

    vectors: VectorSet
    is_scored: tuple[BoolArray, ...]
    has_nan: tuple[BoolArray, ...]


@dataclass(frozen=True)
class Recorder:
    """Makes vectors of runs of a package.

    Attributes:
        package: The package.
        runner: A session of it, of its function bodies with optimisations off unless asked for
            otherwise, which also returns `names_to_return(package)`.
        layers: Where the inner values of each layer are.
    """

    package: OnnxPackage
    runner: Runner
    layers: tuple[LayerValues, ...]

    @classmethod
    def of(cls, package: OnnxPackage, variant: Variant = FUNCTION_BODIES) -> Recorder:
        """Open a package: its function bodies, or as it runs otherwise."""
        runner = open_runner(package, variant.returning(names_to_return(package)))
        return cls(package, runner, layer_values(package))

    def record(self, inputs: Mapping[str, Array]) -> VectorSet:
        """Run the function bodies.

        The margins of a layer whose scores are not known are infinite: they excuse nothing.

        Raises:
            ConfigError: The inputs do not fit the model.
            BackendError: The runtime failed.
        """
        return self.scored_run(inputs).vectors

    def scored_run(self, inputs: Mapping[str, Array]) -> ScoredRun:
        """Run the function bodies, and say which tokens have scores.

        Raises:
            ConfigError: The inputs do not fit the model.
            BackendError: The runtime failed.
        """
        package = self.package
        results = self.runner.run(inputs)
        gates = tuple(results[name] for name in package.gate_names)
        margins = [_margins(*layer, results) for layer in zip(self.layers, gates, strict=True)]
        # [B, S] of each layer: scores and fingerprints are brought to the tokens of its gates.
        shown = [(layer, gate.shape[:2]) for layer, gate in zip(self.layers, gates, strict=True)]
        vectors = VectorSet(
            sizes=check_inputs(package.manifest.inputs, inputs),
            inputs=dict(inputs),
            outputs={spec.name: results[spec.name] for spec in package.manifest.outputs},
            gates=gates,
            # A choice among NaN is a tie, margin 0; infinity, where scores are not known, stays.
            margins=tuple(np.nan_to_num(margin, nan=0.0, posinf=np.inf) for margin in margins),
            scores=tuple(layer.scores(results, tokens) for layer, tokens in shown),
            attention=tuple(layer.fingerprint(results, tokens) for layer, tokens in shown),
        )
        return ScoredRun(
            vectors,
            # Infinite margins: scores that are not known. NaN: scores that are known, and no
            # numbers.
            is_scored=tuple(np.isfinite(margin) for margin in margins),
            has_nan=tuple(np.isnan(margin) for margin in margins),
        )


def _margins(layer: LayerValues, gates: Array, results: Mapping[str, Array]) -> NDArray[np.float32]:
    """Return [B, S]: see `VectorSet.margins`; NaN where a score is."""
    tokens = gates.shape[:-1]
    # A router of plain operators shows no scores, so its choices cannot be called ties.
    logits = None if layer.logits is None else results.get(layer.logits)
    if layer.router is not None and logits is not None:
        form, top_k = layer.router.form, int(layer.router.attributes["top_k"])
        margins = form.margins(form.scores(logits), top_k)
        # One margin per [B, S] is needed; logits over windows or samples do not tell a token's
        # choice.
        if margins.size == np.prod(tokens):
            return margins.reshape(tokens)
    return np.full(tokens, np.inf, np.float32)
