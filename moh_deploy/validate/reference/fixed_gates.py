"""Record what a package computes with the same gates for every token, by feeding them to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.graph.forced_gates import forced_gates
from moh_deploy.graph.narrowing import FixedHeads
from moh_deploy.package import LayerInfo, OnnxPackage, VectorSet
from moh_deploy.runtime.base import FUNCTION_BODIES
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values


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
            gates = [_gates(*pair) for pair in zip(fixed, run.gates, strict=True)]
            names = (forced_gates(layer.gates) for layer in layers)
            found = runner.run({**run.inputs, **dict(zip(names, gates, strict=True))})
            recorded.append(_set(run, found, layers, values, gates, fixed))
    return tuple(recorded)


def _gates(fixed: FixedHeads, like: Array) -> Array:
    """Return gates [B, S, H], the same for every token."""
    row = np.zeros(like.shape[-1], like.dtype)
    row[list(fixed.kept)] = fixed.gates
    same: Array = np.broadcast_to(row, like.shape).copy()
    return same


def _set(
    run: VectorSet,
    found: Mapping[str, Array],
    layers: Sequence[LayerInfo],
    values: Sequence[LayerValues],
    gates: Sequence[Array],
    fixed: Sequence[FixedHeads],
) -> VectorSet:
    left = [_left(gate, heads) for gate, heads in zip(gates, fixed, strict=True)]
    attention = [
        _fingerprint(layer, value, found, heads, gate.shape[:2])
        for layer, value, heads, gate in zip(layers, values, fixed, gates, strict=True)
    ]
    return replace(
        run,
        outputs={name: found[name] for name in run.outputs},
        gates=tuple(left),
        # Nothing is selected, so nothing is near a tie.
        margins=tuple(np.full(array.shape[:2], np.inf, np.float32) for array in left),
        scores=(),
        attention=tuple(attention),
    )


def _left(gates: Array, fixed: FixedHeads) -> Array:
    return gates[..., list(fixed.kept)] if fixed.is_cut else gates


def _fingerprint(
    layer: LayerInfo,
    value: LayerValues,
    found: Mapping[str, Array],
    fixed: FixedHeads,
    tokens: tuple[int, ...],
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
    return value.fingerprint({value.attention: heads}, tokens)
