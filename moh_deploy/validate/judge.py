"""Judge one run of a runtime by reference vectors: outputs, chosen heads, gates.

Routing is discrete: rounding decides between heads that are nearly tied, and another head moves all
that attention mixes it into. So a run is judged in two ways. Left to itself, where no token chose
other heads, everything is compared tightly. Where a token did, or something differs, the model runs
again with the reference gates fed to every layer: there nothing stands behind a flip, so every
output and every router is compared tightly, each router on what the reference had seen. A flip is
explained if its margin is below what rounding can bridge. Behind one, the run left to itself must
be finite, and no bound that could be named there would be more than luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from moh_deploy.backends.runner import Runner
from moh_deploy.npz import Array
from moh_deploy.package import LayerInfo, OnnxPackage, VectorSet, computed_gates, forced_gates
from moh_deploy.validate.diagnosis import diagnosis, reference_is_nan
from moh_deploy.validate.layer_parity import compare_layer, incomparable_layer
from moh_deploy.validate.noise_floor import STEPS, measure_floor
from moh_deploy.validate.output_parity import (
    compare_output,
    incomparable_output,
    unjudged_output,
)
from moh_deploy.validate.parity_report import LayerParity, OutputParity
from moh_deploy.validate.policy import Policy
from moh_deploy.validate.routing_statistics import (
    NO_STATISTICS,
    RoutingStatistics,
    joined,
    layer_statistics,
)
from moh_deploy.validate.tolerances import Tolerance, coarsest, output_rule, rules_of
from moh_deploy.validate.valid_tokens import TokenView
from moh_deploy.validate.variants import Variants


@dataclass(frozen=True)
class Case:
    """One vector set, how reports call it, and what of it is compared."""

    expected: VectorSet
    label: str
    view: TokenView


@dataclass(frozen=True)
class Judged:
    """What was found for one vector set."""

    outputs: Sequence[OutputParity]
    layers: Sequence[LayerParity] = ()
    notes: tuple[str, ...] = ()
    statistics: RoutingStatistics = NO_STATISTICS

    @property
    def equal(self) -> bool:
        wrong = [one.reason for one in self.outputs] + [one.reason for one in self.layers]
        return not any(wrong)

    @property
    def flips(self) -> bool:
        return any(one.flipped_tokens or one.excused_tokens for one in self.layers)


@dataclass
class Judge:
    """Runs vector sets. The variants are opened when they are first needed."""

    package: OnnxPackage
    runner: Runner
    policy: Policy
    variants: Variants | None
    rules: dict[str, Tolerance] = field(default_factory=dict)
    _forced: Runner | None = None
    _noisy: Runner | None = None
    _why_not: str | None = None
    _asked: bool = False

    def __post_init__(self) -> None:
        self._rule = self._model_rule()

    def outputs_of(self, case: Case) -> Judged:
        """Compare the outputs alone. Without gates a flip cannot be seen, so there may be some."""
        got, rule = self.runner.run(case.expected.inputs), self._rule.after_flip()
        return Judged(list(self._outputs(case, got, rule, {}, skip_absent=True)))

    def everything(self, case: Case) -> Judged:
        got = self.runner.run(case.expected.inputs)
        floor = self._floor(case, got)
        free = self._free(case, got, floor)
        if not free.flips and free.equal:
            return free
        forced = self._forced_run(case, got, floor)
        if forced is None:
            return replace(free, notes=self._note())
        notes = () if forced.equal and free.flips else (self._where(case, forced),)
        if not free.flips:
            return replace(free, notes=notes)
        unjudged = list(_unjudged(self.package, case, got))
        layers = [_merged(*pair) for pair in zip(forced.layers, free.layers, strict=True)]
        statistics = replace(free.statistics, margins=forced.statistics.margins)
        return Judged([*forced.outputs, *unjudged], layers, notes, statistics)

    def _where(self, case: Case, forced: Judged) -> str:
        """Say where the error enters, unless the reference is at fault itself."""
        gates = dict(zip(self.package.gate_names, case.expected.gates, strict=True))
        compared = case.view.select({**case.expected.outputs, **gates}, {})
        why = reference_is_nan(compared.values(), case.label)
        return diagnosis(forced.layers, forced.outputs) if why is None else why

    def _free(self, case: Case, got: Mapping[str, Array], floor: Mapping[str, float]) -> Judged:
        """Judge the model left to itself; behind an explained flip by the looser rule."""
        layers: list[LayerParity] = []
        counts: list[RoutingStatistics] = []
        rule = self._rule
        for layer, gates, margins in self._layers(case.expected):
            if gates is None or margins is None:
                reason = f"gates of layer '{layer.path}' are not in vectors {case.label}."
                layers.append(incomparable_layer(layer.path, case.label, reason))
                continue
            recorded = _Recorded(layer, gates, margins)
            known = floor.get(computed_gates(layer.gates))
            found, counted = self._layer(case, recorded, got.get(layer.gates), rule, known)
            layers.append(found)
            counts.append(counted)
            if found.excused_tokens:
                rule, floor = rule.after_flip(), {}
        outputs = list(self._outputs(case, got, rule, floor))
        return Judged(outputs, layers, statistics=joined(counts))

    def _forced_run(
        self, case: Case, got: Mapping[str, Array], floor: Mapping[str, float]
    ) -> Judged | None:
        """Judge the model with the reference gates fed to it; None if they cannot be."""
        gates = self._gates_to_feed(case.expected, got)
        if gates is None:
            return None
        assert self.variants is not None
        if self._forced is None:
            self._forced = self.variants.forced({k: v.dtype for k, v in gates.items()})
        got = self._forced.run(self._inputs(case.expected, gates))
        forced = replace(case, label=f"{case.label}, routing forced")
        found = [
            self._layer(
                forced,
                _Recorded(layer, reference, margins),
                got.get(computed_gates(layer.gates)),
                self._rule,
                floor.get(computed_gates(layer.gates)),
                forced=True,
            )
            for layer, reference, margins in self._layers(case.expected)
            if reference is not None and margins is not None
        ]
        outputs = list(self._outputs(forced, got, self._rule, floor, forced=True))
        counts = joined(counted for _, counted in found)
        return Judged(outputs, [layer for layer, _ in found], statistics=counts)

    def _layer(
        self,
        case: Case,
        recorded: _Recorded,
        got: Array | None,
        rule: Tolerance,
        floor: float | None,
        *,
        forced: bool = False,
    ) -> tuple[LayerParity, RoutingStatistics]:
        layer, name = recorded.layer, recorded.layer.gates
        margins = case.view.margins(name, got, recorded.gates, recorded.margins)
        value, gates, place = case.view.of(name, got, recorded.gates)
        found = compare_layer(
            layer.path,
            case.label,
            value,
            gates,
            margins,
            rule,
            floor=floor,
            forced=forced,
            place=place,
        )
        return found, self._count(layer, value, gates, margins)

    def _count(
        self, layer: LayerInfo, got: Array | None, reference: Array, margins: Array
    ) -> RoutingStatistics:
        shared, bound = layer.num_shared_heads, self._rule.near_tie
        return layer_statistics(layer.path, shared, got, reference, margins, bound)

    def _floor(self, case: Case, got: Mapping[str, Array]) -> dict[str, float]:
        """Return the noise floor of each value; nothing where there is none, or no way to ask."""
        precision = self.package.manifest.precision
        if precision not in STEPS or not self._rule.floor_factor:
            return {}
        gates = self._gates_to_feed(case.expected, got)
        if gates is None:
            return {}
        assert self.variants is not None
        if self._noisy is None:
            self._noisy = self.variants.noisy({k: v.dtype for k, v in gates.items()})
        if self._noisy is None:
            return {}
        names = {computed_gates(name): name for name in gates}
        return measure_floor(
            self._noisy,
            self._inputs(case.expected, gates),
            precision,
            gates=frozenset(names),
            select=lambda results: case.view.select(results, names),
        )

    def _gates_to_feed(
        self, expected: VectorSet, got: Mapping[str, Array]
    ) -> dict[str, Array] | None:
        """Return the reference gates in the dtypes of the model; None if they cannot be fed."""
        layers = self.package.manifest.layers
        if self.variants is None or not layers or len(expected.gates) != len(layers):
            return None
        pairs = list(zip(layers, expected.gates, strict=True))
        if any(
            layer.gates not in got or got[layer.gates].shape != gates.shape
            for layer, gates in pairs
        ):
            return None
        if not self._asked:
            self._why_not, self._asked = self.variants.why_not_forced(), True
        if self._why_not is not None:
            return None
        return {layer.gates: gates.astype(got[layer.gates].dtype) for layer, gates in pairs}

    @staticmethod
    def _inputs(expected: VectorSet, gates: Mapping[str, Array]) -> dict[str, Array]:
        return {**expected.inputs, **{forced_gates(k): v for k, v in gates.items()}}

    def _note(self) -> tuple[str, ...]:
        if self._why_not is None:
            return ()
        return (f"The reference gates were not fed to the model: {self._why_not}.",)

    def _layers(self, expected: VectorSet) -> Iterator[_RecordedLayer]:
        recorded = list(zip(expected.gates, expected.margins, strict=True))
        for index, layer in enumerate(self.package.manifest.layers):
            gates, margins = recorded[index] if index < len(recorded) else (None, None)
            yield layer, gates, margins

    def _outputs(
        self,
        case: Case,
        got: Mapping[str, Array],
        rule: Tolerance,
        floor: Mapping[str, float],
        *,
        skip_absent: bool = False,
        forced: bool = False,
    ) -> Iterator[OutputParity]:
        for name in (spec.name for spec in self.package.manifest.outputs):
            if name in case.expected.outputs:
                value, reference, place = case.view.of(
                    name, got.get(name), case.expected.outputs[name]
                )
                yield compare_output(
                    name,
                    case.label,
                    value,
                    reference,
                    self._output_rule(reference.dtype.name, rule),
                    floor=floor.get(name),
                    forced=forced,
                    place=place,
                )
            elif not skip_absent:
                yield incomparable_output(
                    name, case.label, f"output '{name}' is not in vectors {case.label}."
                )

    def _model_rule(self) -> Tolerance:
        """Return the rule for the model's precision and for what its kernels compute in."""
        names = rules_of(self.package.manifest.precision, self.runner)
        return coarsest(*map(self._rule_for, names))

    def _output_rule(self, dtype: str, model_rule: Tolerance) -> Tolerance:
        return output_rule(dtype, self._rule_for(dtype), model_rule)

    def _rule_for(self, dtype: str) -> Tolerance:
        self.rules[dtype] = self.policy.rule(dtype)
        return self.rules[dtype]


_RecordedLayer = tuple[LayerInfo, Array | None, Array | None]


class _Recorded(NamedTuple):
    """A layer, and what the reference has of it."""

    layer: LayerInfo
    gates: Array
    margins: Array


def _unjudged(package: OnnxPackage, case: Case, got: Mapping[str, Array]) -> Iterator[OutputParity]:
    label = f"{case.label}, behind a flip"
    for name in (spec.name for spec in package.manifest.outputs):
        if name in case.expected.outputs:
            value, reference, _ = case.view.of(name, got.get(name), case.expected.outputs[name])
            yield unjudged_output(name, label, value, reference)


def _merged(forced: LayerParity, free: LayerParity) -> LayerParity:
    """Return the judgement under forced routing, with what was seen of the model by itself."""
    reason = forced.reason or (free.reason if math.isnan(free.gate_error) else None)
    return replace(forced, reason=reason, free_flips=free.flipped_tokens + free.excused_tokens)
