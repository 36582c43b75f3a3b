"""Count how often, and how strongly, each head of a layer is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moh_deploy.errors import ConfigError
from moh_deploy.graph.forced_gates import forced_gates
from moh_deploy.graph.narrowing import FixedHeads
from moh_deploy.package import LayerInfo, OnnxPackage, VectorSet
from moh_deploy.runtime.base import AS_IT_IS, FUNCTION_BODIES
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values
from moh_deploy.validate.reference.samples import Sample
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN, token_view


@dataclass(frozen=True)
class HeadLoads:
    """The use of each head of one layer over some tokens, padding left out."""

    tokens: int
    load: tuple[float, ...]  # Share of the tokens with an open gate, by head
    mass: tuple[float, ...]  # Mean of the gate's absolute value, closed gates counted as 0
    gate: tuple[float, ...]  # Mean of the gate itself

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
    manifest, names = package.manifest, tuple(dict.fromkeys(package.gate_names))
    needs_run = any(not sample.known.gates for sample in samples)
    runner = open_runner(package, AS_IT_IS.returning(names)) if needs_run else None
    by_sample = []
    for sample in samples:
        known, gates = sample.known, sample.known.gates
        if not gates:
            assert runner is not None
            found = runner.run(known.inputs)
            gates = tuple(found[name] for name in package.gate_names)
        run = VectorSet(known.sizes, known.inputs, {}, gates, ())
        view = EVERY_TOKEN if sample.valid is None else token_view(sample.valid, manifest, run)
        counted = map(view.of, package.gate_names, gates, gates)
        # Of each layer, [tokens, H]: tokens that count.
        by_sample.append([seen.reference.reshape(-1, seen.reference.shape[-1]) for seen in counted])
    return tuple(map(HeadLoads.of, zip(*by_sample, strict=True)))


# Record what a package computes with the same gates for every token, by feeding them to it.


def with_fixed_gates(package: OnnxPackage, fixed: Sequence[FixedHeads]) -> tuple[VectorSet, ...]:
    """Return the recorded runs of a package with gates fed to it in place of its routers' own.

    It runs as function bodies, unoptimised: every head is computed, with whole weights, and only
    then weighed. What a package with cut weights has to equal.

    Args:
        fixed: The heads of each layer that run, and their gates; the others get 0.

    Returns:
        Runs with the gates and the attention of what is left.

    Raises:
        ConfigError: Attention does not compute with the gates that would be fed.
        BackendError: The runtime failed.
    """
    variants = PackageVariants(package, FUNCTION_BODIES)
    why = variants.why_not_forced()
    if why is not None:
        raise ConfigError(
            f"{package.root} cannot run with gates that are given: {why}.",
            hint="`moh-deploy inspect` says which layers stay as plain operators, and why.",
        )
    layers, values = package.manifest.layers, layer_values(package)
    first = package.vectors[0].gates
    types = {layer.gates: gates.dtype for layer, gates in zip(layers, first, strict=True)}
    inner = dict.fromkeys(value.attention for value in values if value.attention is not None)
    recorded = []
    with variants.forced(types, tuple(inner)) as runner:
        for run in package.vectors:
            fed, left = {}, []
            for layer, heads, like in zip(layers, fixed, run.gates, strict=True):
                row = np.zeros(like.shape[-1], like.dtype)
                row[list(heads.kept)] = heads.gates
                # [B, S, H]: the same for every token.
                gates = np.broadcast_to(row, like.shape).copy()
                fed[forced_gates(layer.gates)] = gates
                left.append(gates[..., list(heads.kept)] if heads.is_cut else gates)
            found = runner.run({**run.inputs, **fed})
            of_layers = zip(layers, values, fixed, run.gates, strict=True)
            recorded.append(
                replace(
                    run,
                    outputs={name: found[name] for name in run.outputs},
                    gates=tuple(left),
                    # Nothing is selected, so nothing is near a tie.
                    margins=tuple(np.full(gates.shape[:2], np.inf, np.float32) for gates in left),
                    scores=(),
                    attention=tuple(_fingerprint(*layer, found) for layer in of_layers),
                )
            )
    return tuple(recorded)


def _fingerprint(
    layer: LayerInfo,
    value: LayerValues,
    fixed: FixedHeads,
    gates: Array,
    found: Mapping[str, Array],
) -> Array | None:
    """Return the fingerprint of the heads that are left, [B, S, NUMBERS]."""
    if value.attention is None:
        return None
    heads = found[value.attention]
    if fixed.is_cut:
        kept = list(fixed.kept)
        if heads.ndim == 4:  # [B, H, S, D]
            heads = heads[:, kept]
        else:
            apart = heads.reshape(*heads.shape[:-1], layer.num_heads, -1)
            heads = apart[..., kept, :].reshape(*heads.shape[:-1], -1)
    return value.fingerprint({value.attention: heads}, gates.shape[:2])
