"""Compare a runner with vectors that hold NaN: NaN is right where the reference has it.

`compare` takes NaN for equal to nothing, which is right for a model at work, and wrong for one that
was given nothing but padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.graph.forced_gates import GateTypes, computed_gates
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.edge_cases.routing_judge import nan_places
from moh_deploy.validate.variants import Variants


@dataclass(frozen=True)
class NanPlaces:
    """The places where outputs and gates of one run of the reference are NaN, by name."""

    places: Mapping[str, BoolArray]

    @classmethod
    def of(cls, package: OnnxPackage, vectors: VectorSet) -> NanPlaces:
        """Read them from a run; values without NaN are left out."""
        gates = dict(zip(package.gate_names, vectors.gates, strict=True))
        found = {name: nan_places(array) for name, array in {**vectors.outputs, **gates}.items()}
        kept = {name: places for name, places in found.items() if places.any()}
        # With gates fed, the router's own gates come back under another name.
        computed = {computed_gates(name): kept[name] for name in gates if name in kept}
        return cls({**kept, **computed})

    def zeroed(self, package: OnnxPackage, vectors: VectorSet) -> VectorSet:
        """Return the vectors with 0 in these places."""
        rows = zip(package.gate_names, vectors.gates, strict=True)
        return replace(
            vectors,
            outputs={name: self._zero(name, array) for name, array in vectors.outputs.items()},
            gates=tuple(self._zero(name, array) for name, array in rows),
        )

    def zeroed_where_nan(self, results: Mapping[str, Array]) -> dict[str, Array]:
        """Return results with 0 where both they and the reference are NaN.

        A number where the reference is NaN becomes infinite: it agrees with nothing.
        """
        return {name: self._matched(name, array) for name, array in results.items()}

    def _zero(self, name: str, array: Array) -> Array:
        places = self.places.get(name)
        return array if places is None else _filled(array, places, 0.0)

    def _matched(self, name: str, array: Array) -> Array:
        places = self.places.get(name)
        if places is None or places.shape != array.shape:
            return array
        found = nan_places(array)
        # NaN on both sides agrees as 0; a number against NaN becomes infinite, which agrees with
        # nothing. NaN where the reference has a number stays, and fails.
        return _filled(_filled(array, places & found, 0.0), places & ~found, np.inf)


def _filled(array: Array, places: BoolArray, value: float) -> Array:
    changed: Array = array.copy()
    changed[places] = np.asarray(value).astype(array.dtype)
    return changed


@dataclass(frozen=True)
class NanKept(RunnerAround):
    """A runner whose NaN became 0 where the reference has NaN too."""

    runner: Runner
    nan: NanPlaces

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.nan.zeroed_where_nan(self.runner.run(inputs))


@dataclass(frozen=True)
class NanKeptVariants:
    """Variants of a model whose forced runs keep NaN in the same way."""

    variants: Variants
    nan: NanPlaces

    def why_not_forced(self) -> str | None:
        return self.variants.why_not_forced()

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        return NanKept(self.variants.forced(gates, inner), self.nan)

    def noisy(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        # Not wrapped: noise measures how far the package moves from itself, NaN and all.
        return self.variants.noisy(gates, inner)

    def rounded(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        return self.variants.rounded(gates, inner)
