"""Count how often, and how strongly, each head of a layer is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moh_deploy.graph.narrowing import FixedHeads
from moh_deploy.package import Manifest, OnnxPackage, VectorSet
from moh_deploy.runtime.base import AS_IT_IS
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.samples import Sample
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN, token_view


@dataclass(frozen=True)
class HeadLoads:
    """The use of each head of one layer over some tokens, padding left out.

    Attributes:
        tokens: How many.
        load: Share of the tokens with an open gate, by head.
        mass: Mean of the gate's absolute value, closed gates counted as 0.
        gate: Mean of the gate itself.
    """

    tokens: int
    load: tuple[float, ...]
    mass: tuple[float, ...]
    gate: tuple[float, ...]

    @classmethod
    def of(cls, gates: Sequence[Array]) -> HeadLoads:
        """Count over gates [tokens, H]."""
        all_gates = np.concatenate(gates).astype(np.float64)
        tokens = max(1, len(all_gates))

        def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> tuple[float, ...]:
            return tuple((values.sum(axis=0) / tokens).tolist())

        return cls(len(all_gates), mean(all_gates != 0), mean(abs(all_gates)), mean(all_gates))

    def most_used(self, keep: int, by: str) -> FixedHeads:
        """Return the heads that are used most, with the constant that is nearest to their gates.

        Of heads that are alike the one with more of the other figure comes first, then the lower
        number. The mean over all tokens is the constant with the least squared distance from what
        the router gives (docs/adr/0067).

        Args:
            keep: How many.
            by: `load` or `gate`.
        """
        first, second = (self.load, self.mass) if by == "load" else (self.mass, self.load)
        order = sorted(range(len(first)), key=lambda head: (-first[head], -second[head], head))
        kept = tuple(sorted(order[:keep]))
        return FixedHeads(kept, tuple(float(np.float32(self.gate[head])) for head in kept))


def head_loads(package: OnnxPackage, samples: Sequence[Sample]) -> tuple[HeadLoads, ...]:
    """Count for each layer, by the gates that are known of samples, or else by running them.

    Raises:
        ConfigError: A sample does not fit the model.
        BackendError: The runtime failed.
    """
    manifest = package.manifest
    by_layer: list[list[Array]] = [[] for _ in manifest.layers]
    needs_run = any(not sample.known.gates for sample in samples)
    runner = open_runner(package, AS_IT_IS.returning(_names(manifest))) if needs_run else None
    for sample in samples:
        gates = sample.known.gates
        if not gates:
            assert runner is not None
            found = runner.run(sample.known.inputs)
            gates = tuple(found[layer.gates] for layer in manifest.layers)
        for place, chosen in enumerate(_counted(manifest, sample, gates)):
            by_layer[place].append(chosen)
    return tuple(map(HeadLoads.of, by_layer))


def _names(manifest: Manifest) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer.gates for layer in manifest.layers))


def _counted(manifest: Manifest, sample: Sample, gates: Sequence[Array]) -> list[Array]:
    """Return the gates of tokens that count, [tokens, H] a layer."""
    known = sample.known
    run = VectorSet(known.sizes, known.inputs, {}, tuple(gates), ())
    view = EVERY_TOKEN if sample.valid is None else token_view(sample.valid, manifest, run)
    chosen = (
        view.of(layer.gates, gate, gate).reference
        for layer, gate in zip(manifest.layers, gates, strict=True)
    )
    return [array.reshape(-1, array.shape[-1]) for array in chosen]
