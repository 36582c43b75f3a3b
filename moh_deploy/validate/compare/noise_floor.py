"""Measure how far rounding alone moves a model: the floor that errors are judged by.

Of a model in float32 the export measured it on the original, and the manifest has it. Of one in
half precision or int8 it is measured here, on the package, which is verified without PyTorch, with
the reference gates fed to it: each low weight moves at random by up to one step of its dtype, and
the results are compared with those of the weights as they are; and every result is rounded, as
hardware does. A wrong model differs from the reference, but not from itself: a fault does not raise
its own floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from moh_deploy.config.dtypes import PRECISIONS
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.graph.weight_noise import weight_noise
from moh_deploy.package import (
    LayerRounding,
    OnnxPackage,
    Rounding,
    Spread,
    VectorSet,
    beside_masks,
    fingerprint_spread,
    spread,
)
from moh_deploy.runtime.base import Runner
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.layer_parity import LayerValuesFound
from moh_deploy.validate.compare.tolerances import BFLOAT16_PRODUCTS
from moh_deploy.validate.reference.differences import Float64Array, abs_error
from moh_deploy.validate.reference.reference import Variants
from moh_deploy.validate.reference.samples import own_view

NOISE = {name: known.step for name, known in PRECISIONS.items() if known.step}
NOISE[BFLOAT16_PRODUCTS] = 1.0
"""How far a weight moves: by up to one step of its dtype. Of integers in steps of their scale;
of int8 what products read moves as well. Operands of attention's products are rounded, or not."""

STEPS = {name: step for name, step in NOISE.items() if step < 1}
"""One step of a dtype, as a share of a number."""

DRAWS = 3

_ROUNDINGS = 3.0
"""A weight that moves by up to one step, and is rounded again, moves three times as far as rounding
it moved it: by 0.88 of the distance to its neighbour, by root mean square over all mantissas, and
not by 0.29."""


@dataclass(frozen=True)
class NoiseFloor:
    """The distances that rounding noise moves the values of one run."""

    # Of each output; infinite where noise makes a number infinite or NaN. Outputs that are not
    # known are missing.
    outputs: Mapping[str, Spread] = field(default_factory=dict)
    layers: Sequence[LayerRounding] = ()  # Of each layer; empty if they are not known

    def of_layer(self, index: int) -> LayerRounding | None:
        return self.layers[index] if self.layers else None

    def joined(self, other: NoiseFloor, *, rms: float, largest: float) -> NoiseFloor:
        """Add another, independent floor to this one; without this one there is no floor.

        Args:
            other: Of the same run.
            rms: How often the other's root mean squares count.
            largest: The same of its largest moves.
        """

        def both(own: Spread, more: Spread) -> Spread:
            return _added(own, Spread(rms * more.rms, largest * more.largest))

        names = self.outputs.keys() & other.outputs.keys()
        layers = [_by_part(both, *pair) for pair in zip(self.layers, other.layers, strict=False)]
        return NoiseFloor(
            {name: both(self.outputs[name], other.outputs[name]) for name in names}, layers
        )


NO_FLOOR = NoiseFloor()


def _added(first: Spread, second: Spread) -> Spread:
    """Add up independent errors: squares add."""
    return Spread(math.hypot(first.rms, second.rms), math.hypot(first.largest, second.largest))


def _times(factor: float, noise: Spread) -> Spread:
    return Spread(factor * noise.rms, factor * noise.largest)


def _by_part(change: Callable[..., Spread], *layers: LayerRounding) -> LayerRounding:
    """Change floors of one layer value by value; one that is not known stays so."""

    def known(*spreads: Spread | None) -> Spread | None:
        return None if None in spreads else change(*spreads)

    return LayerRounding(
        known(*(layer.scores for layer in layers)),
        change(*(layer.gates for layer in layers)),
        known(*(layer.attention for layer in layers)),
    )


def recorded_floor(
    package: OnnxPackage, rounding: Rounding, expected: VectorSet, references: Mapping[str, Array]
) -> NoiseFloor:
    """Return the floor that an export measured, for a run at whatever sizes.

    Args:
        package: What it wrote; its first run is that on which the floor was measured.
        rounding: What it measured.
        expected: What is expected of the run.
        references: What of its outputs is compared, by name.
    """
    growth = _growth(package, expected)
    # Of the example, too, what is padding by the package was not measured.
    example: Mapping[str, Array] = {}
    for first in package.vectors[:1]:
        example = own_view(package.manifest, first, "0").select(first.outputs)

    def floor(share: Spread, *values: Array) -> Spread:
        # What is small by cancellation is moved as far as what is large: a loss, say.
        sizes = [spread(beside_masks(np.zeros(array.shape), array)[1]) for array in values]
        return Spread(
            growth * share.rms * max(size.rms for size in sizes),
            growth * share.largest * max(size.largest for size in sizes),
        )

    outputs = {
        name: floor(rounding.outputs[name], array, example.get(name, array))
        for name, array in references.items()
        if name in rounding.outputs
    }
    layers = [_by_part(partial(_times, growth), layer) for layer in rounding.layers]
    return NoiseFloor(outputs, layers)


_FEW_TERMS = 64
"""Sums of more terms than this are further off than a step, by the root of their number, as in the
noise that the floor was measured with: see `frontend/prove/noisy_run.py`."""


def _growth(package: OnnxPackage, expected: VectorSet) -> float:
    """Return how much further rounding moves a run than the example, for its sums are longer.

    Attention over a thousand tokens adds a thousand terms, which nearly cancel: what is left
    shrinks with the root of their number, and their rounding does not.
    """
    if not package.vectors or not expected.sizes:
        return 1.0
    example = package.vectors[0]
    known = [name for name, size in example.sizes.items() if size and name in expected.sizes]
    longer = math.prod(expected.sizes[name] / example.sizes[name] for name in known)
    # Samples and windows are no terms of a sum: gates are [B, S, H].
    pairs = [
        (gate.shape[0], first.shape[0])
        for gate, first in zip(expected.gates, example.gates, strict=False)
    ]
    longer /= max((now / then for now, then in pairs if now and then), default=1.0)
    keys = max((layer.kv_len or 0 for layer in package.manifest.layers), default=0)
    # Whatever else is summed over, as a mean over all tokens, is no longer than the keys are.
    terms = max(keys, 1)
    # A shorter run is held to what was measured.
    longer = max(longer, 1.0)
    return math.sqrt(max(1.0, terms * longer / _FEW_TERMS) / max(1.0, terms / _FEW_TERMS))


@dataclass(frozen=True)
class NoisyResults:
    """The results of a model with its weights as they are, and with noise, by name."""

    exact: Mapping[str, Array]
    drawn: Sequence[Mapping[str, Array]]  # Those of each draw
    # Those without noise, with every result rounded; None where all of the above are.
    rounded: Mapping[str, Array] | None = None

    def selected(self, select: Callable[[Mapping[str, Array]], dict[str, Array]]) -> NoisyResults:
        """Reduce all results to the elements that count."""
        rounded = None if self.rounded is None else select(self.rounded)
        return NoisyResults(select(self.exact), [select(arrays) for arrays in self.drawn], rounded)

    def has_flips(self, gates: Sequence[str]) -> bool:
        """Tell whether noise makes a token choose other heads: then it moves more than rounding."""
        # Heads flipped by noise move values by far more than rounding, and would excuse anything.
        others = [*self.drawn, *([] if self.rounded is None else [self.rounded])]
        pairs = ((other[name], self.exact[name]) for other in others for name in gates)
        return any(bool(((got != 0) != (exact != 0)).any()) for got, exact in pairs)

    def move(self, name: str, *, only_chosen: bool = False) -> Spread:
        """Measure how far rounding moves a value.

        Args:
            only_chosen: Only elements count that are not 0 in either run: gates of heads.
        """

        def moves(runs: Sequence[Mapping[str, Array]]) -> Spread:
            exact = self.exact[name]
            return spread(_differences([run[name] for run in runs], exact, only_chosen=only_chosen))

        noise = moves(self.drawn)
        return noise if self.rounded is None else _together(noise, moves([self.rounded]))

    def of_layer(self, show: Callable[[Mapping[str, Array]], LayerValuesFound]) -> LayerRounding:
        """Measure how far rounding moves the known values of a layer.

        Args:
            show: Returns what results show of it.
        """
        exact = show(self.exact)
        noise = _layer_moves(exact, [show(arrays) for arrays in self.drawn])
        if self.rounded is None:
            return noise
        return _by_part(_together, noise, _layer_moves(exact, [show(self.rounded)]))


def _together(noise: Spread, rounding: Spread) -> Spread:
    """Add up what rounding the weights and rounding the results does."""
    return _added(Spread(noise.rms / _ROUNDINGS, noise.largest / _ROUNDINGS), rounding)


def _layer_moves(exact: LayerValuesFound, others: Sequence[LayerValuesFound]) -> LayerRounding:
    assert exact.gates is not None
    scores, attention = exact.scores, exact.attention
    gates = [other.gates for other in others if other.gates is not None]
    moved_scores, moved_attention = None, None
    if scores is not None:
        moved = _moved([other.scores for other in others], scores)
        moved_scores = spread(beside_masks(moved, scores)[0])
    if attention is not None:
        moved = _moved([other.attention for other in others], attention)
        moved_attention = fingerprint_spread(moved, attention)
    # Only gates of heads that are on in both: a head that noise switches is a flip, not a move.
    moved_gates = spread(_differences(gates, exact.gates, only_chosen=True))
    return LayerRounding(moved_scores, moved_gates, moved_attention)


def _moved(values: Sequence[Array | None], exact: Array) -> Float64Array:
    wide = exact.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities of one sign have no difference
        moved = np.stack([value.astype(np.float64) - wide for value in values if value is not None])
    return np.where(np.isnan(moved), 0.0, moved)


def _differences(runs: Sequence[Array], exact: Array, *, only_chosen: bool) -> Float64Array:
    """Return [elements]: the moves of all in all runs, or of those alone that are not 0 in both."""
    found = []
    for got in runs:
        error, _ = beside_masks(abs_error(got, exact), exact)
        error = np.where(np.isfinite(exact), error, 0.0)
        # What noise turns into NaN moves infinitely far.
        error = np.where(np.isnan(error), np.inf, error)
        # Compared gates are those of chosen heads: among closed ones their floor would be diluted.
        found.append(error[(got != 0) & (exact != 0)] if only_chosen else error.reshape(-1))
    return np.concatenate(found)


@dataclass
class NoisyModel:
    """A package whose weights move, or operands are rounded, opened when it is first run."""

    variants: Variants
    gates: GateTypes  # Name of each layer's gates to their dtype
    inner: Sequence[str]
    rule: str  # Name of the rule whose floor is measured, a key of NOISE

    @cached_property
    def _noisy(self) -> Runner | None:
        moving: Noise = "operands" if self.rule == BFLOAT16_PRODUCTS else "weights"
        return self.variants.noisy(moving, self.gates, self.inner)

    @cached_property
    def _rounded(self) -> Runner | None:
        if self.rule == BFLOAT16_PRODUCTS:  # That noise is rounding already.
            return None
        return self.variants.noisy("results", self.gates, self.inner)

    def results(self, inputs: Mapping[str, Array]) -> NoisyResults | None:
        """Run it as it is, and with noise; None where no weight can move."""
        if self._noisy is None:
            return None
        # Step 0 comes first: the weights as they are, in the same session.
        exact, *drawn = (
            self._noisy.run({**inputs, **weight_noise(step, draw)})
            for draw, step in enumerate((0.0, *[NOISE[self.rule]] * DRAWS))
        )
        rounded = None if self._rounded is None else self._rounded.run(inputs)
        return NoisyResults(exact, drawn, rounded)
