"""Judge one run of a runtime by reference vectors: outputs, chosen heads, gates, scores, attention.

Routing is discrete: rounding decides between heads that are nearly tied, and another head moves all
that attention mixes it into. So a run is judged in two ways. Left to itself, where no token chose
other heads, everything is compared tightly. Where a token did, or something differs, the model runs
again with the reference gates fed to every layer: there nothing stands behind a flip, so every
output, every router and every attention is compared tightly, each on what the reference had seen.
A flip is explained if a tie can make it. Behind one, the run left to itself must be finite, and no
bound that could be named there would be more than luck.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from moh_deploy.graph.forced_gates import computed_gates, forced_gates
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare import (
    layer_parity,
    noise_floor,
    output_parity,
    routing_statistics,
    tolerances,
)
from moh_deploy.validate.compare.checks import holds_classes
from moh_deploy.validate.compare.diagnosis import diagnosis, reference_is_nan
from moh_deploy.validate.compare.noise_floor import NO_FLOOR, NoiseFloor
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.compare.tolerances import Tolerance
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values
from moh_deploy.validate.reference.reference import Variants
from moh_deploy.validate.reference.valid_tokens import TokenView

Named = Callable[[str], str]
"""From the name of a layer's gates to what a run calls those that its router makes."""


@dataclass(frozen=True)
class ComparedSet:
    """One vector set to judge: its label in reports, and which of its tokens are compared."""

    expected: VectorSet
    label: str
    view: TokenView


@dataclass(frozen=True)
class Judged:
    """The verdicts on one vector set, and what was counted along the way."""

    outputs: Sequence[OutputParity]
    layers: Sequence[LayerParity] = ()
    notes: tuple[str, ...] = ()
    statistics: routing_statistics.RoutingStatistics = routing_statistics.NO_STATISTICS

    @property
    def equal(self) -> bool:
        return not any(o.reason for o in self.outputs) and not any(o.reason for o in self.layers)

    @property
    def flips(self) -> bool:
        return any(layer.other_heads for layer in self.layers)


@dataclass
class Judge:
    """Runs vector sets. The variants are opened when they are first needed."""

    package: OnnxPackage
    runner: Runner
    policy: Policy
    variants: Variants | None  # Opens it with gates fed to it; None: it cannot be
    # References hold scores or fingerprints: those of the package are looked at, too.
    has_inner: bool = False
    rules: dict[str, Tolerance] = field(default_factory=dict)
    _forced: Runner | None = None
    _noisy: dict[str, noise_floor.NoisyModel] = field(default_factory=dict)
    _why_not: str | None = None
    _asked: bool = False

    def __post_init__(self) -> None:
        # A kernel that computes in bfloat16 rounds more than the model's own dtype does.
        manifest = self.package.manifest
        own, *others = map(self._rule_for, tolerances.rules_of(manifest.precision, self.runner))
        self._own_rule, self._rule = own, tolerances.coarsest(own, *others)
        # Without float32's floor, what kernels round comes on top of the most that float32 allows.
        if self._rule is not own and manifest.rounding is None:
            self._rule = replace(self._rule, least=own.relative)

    def outputs_of(self, case: ComparedSet) -> Judged:
        """Compare the outputs alone. Without gates a flip cannot be seen, so there may be some."""
        got, rule = self.runner.run(case.expected.inputs), self._rule.after_flip()
        return Judged(list(self._outputs(case, got, rule, NO_FLOOR, skip_absent=True)))

    def everything(self, case: ComparedSet) -> Judged:
        """Compare outputs and layers, as the model runs by itself and, if need be, as it runs with
        the reference gates."""
        # Left to itself first: for most packages that is all that has to run.
        got = self.runner.run(case.expected.inputs)
        floor = self._floor(case, got)
        free = self._free(case, got, floor)
        if not free.flips and free.equal:
            return free
        forced = self._forced_run(case, got, floor)
        if forced is None:
            why = self._why_not
            note = f"The reference gates were not fed to the model: {why}."
            return free if why is None else replace(free, notes=(note,))
        if not free.flips and forced.equal:
            # Every part agrees, each on what the reference had seen. Together their errors add up.
            outputs = list(self._outputs(case, got, self._rule, NO_FLOOR))
            wrong = any(output.reason is not None for output in outputs)
            notes = (self._where(case, forced),) if wrong else ()
            return replace(forced, outputs=[*forced.outputs, *outputs], notes=notes)
        notes = () if forced.equal else (self._where(case, forced),)
        if not free.flips:
            return replace(forced, outputs=[*forced.outputs, *free.outputs], notes=notes)
        return replace(self._behind_flip(case, got, free, forced), notes=notes)

    def _behind_flip(
        self, case: ComparedSet, got: Mapping[str, Array], free: Judged, forced: Judged
    ) -> Judged:
        """Judge the forced run; what the free one computed behind a flip is shown, and not judged
        except for being finite."""
        unjudged = []
        for spec in self.package.manifest.outputs:
            name, expected, label = spec.name, case.expected.outputs, f"{case.label}, behind a flip"
            if name in expected:
                value, reference, _ = case.view.of(name, got.get(name), expected[name])
                classes = holds_classes(spec)
                unjudged.append(
                    output_parity.unjudged_output(
                        name, label, value, reference, has_classes=classes
                    )
                )
        layers = []
        for layer, own in zip(forced.layers, free.layers, strict=True):
            # Gates that are NaN, or cannot be compared, fail the free run whatever the other says.
            reason = layer.reason or (own.reason if math.isnan(own.gate_error) else None)
            layers.append(replace(layer, reason=reason, free_flips=own.other_heads))
        # No gates stand before the first layer, so that both runs read the same there, and heads
        # that no tie explains are a fault in either.
        first = free.layers[0]
        if layers[0].reason is None and "choice" in first.wrong:
            layers[0] = replace(layers[0], reason=first.reason, wrong=("choice",))
        # The routing counts are those of the free run, the margins those of the forced one.
        statistics = replace(free.statistics, margins=forced.statistics.margins)
        return Judged([*forced.outputs, *unjudged], layers, statistics=statistics)

    def _where(self, case: ComparedSet, forced: Judged) -> str:
        """Say where the error enters, unless the reference is at fault itself."""
        # Padding does not count here either: NaN there is ignored.
        gates = dict(zip(self.package.gate_names, case.expected.gates, strict=True))
        compared = case.view.select({**case.expected.outputs, **gates})
        why = reference_is_nan(compared.values(), case.label)
        if why is not None:
            return why
        sources = [layer.sources for layer in self._values]
        return diagnosis(forced.layers, forced.outputs, sources)

    def _free(self, case: ComparedSet, got: Mapping[str, Array], floor: NoiseFloor) -> Judged:
        """Judge the model left to itself; behind a flip by the looser rule."""
        layers: list[LayerParity] = []
        counts: list[routing_statistics.RoutingStatistics] = []
        rule = self._rule
        for index, layer in enumerate(self.package.manifest.layers):
            if index >= len(case.expected.gates):
                reason = f"gates of layer '{layer.path}' are not in vectors {case.label}."
                layers.append(layer_parity.incomparable_layer(layer.path, case.label, reason))
                continue
            # A layer behind a flip saw other inputs than the reference did, hence the looser rule
            # from there.
            found, counted = self._layer(case, index, self._found(case, index, got), rule, floor)
            layers.append(found)
            counts.append(counted)
            if found.excused_tokens or found.undecided_tokens:
                rule, floor = rule.after_flip(), NO_FLOOR
        outputs = list(self._outputs(case, got, rule, floor))
        return Judged(outputs, layers, statistics=routing_statistics.joined(counts))

    def _forced_run(
        self, case: ComparedSet, got: Mapping[str, Array], floor: NoiseFloor
    ) -> Judged | None:
        """Judge the model with the reference gates fed to it; None if they cannot be."""
        gates = self._gates_to_feed(case.expected, got)
        if gates is None:
            return None
        assert self.variants is not None
        # Compiled on first use: only a run that differs needs this second session.
        if self._forced is None:
            types = {name: array.dtype for name, array in gates.items()}
            self._forced = self.variants.forced(types, self._inner)
        got = self._forced.run(_fed(case.expected, gates))
        forced = replace(case, label=f"{case.label}, routing forced")
        # Fed gates hide those that the router makes, which a forced run returns by another name.
        found = []
        for index in range(len(case.expected.gates)):
            values = self._found(case, index, got, computed_gates)
            found.append(self._layer(forced, index, values, self._rule, floor, forced=True))
        outputs = list(self._outputs(forced, got, self._rule, floor, forced=True))
        counts = routing_statistics.joined(counted for _, counted in found)
        return Judged(outputs, [layer for layer, _ in found], statistics=counts)

    @cached_property
    def _values(self) -> tuple[LayerValues, ...]:
        return layer_values(self.package)

    @property
    def _inner(self) -> list[str]:
        """Names of inner values besides the gates; none where no reference has them."""
        names = [name for layer in self._values for name in layer.names if name != layer.gates]
        return list(dict.fromkeys(names)) if self.has_inner else []

    def _found(
        self, case: ComparedSet, index: int, got: Mapping[str, Array], named: Named = str
    ) -> layer_parity.LayerValuesFound:
        """Collect a layer's gates, scores and fingerprint from a run, of all tokens."""
        gates = got.get(named(self.package.manifest.layers[index].gates))
        # Without references to compare with, inner values would be returned for nothing.
        if not self.has_inner:
            return layer_parity.LayerValuesFound(gates)
        values, tokens = self._values[index], case.expected.gates[index].shape[:2]
        return layer_parity.LayerValuesFound(
            gates, values.scores(got, tokens), values.fingerprint(got, tokens)
        )

    def _layer(
        self,
        case: ComparedSet,
        index: int,
        found: layer_parity.LayerValuesFound,
        rule: Tolerance,
        floor: NoiseFloor,
        *,
        forced: bool = False,
    ) -> tuple[LayerParity, routing_statistics.RoutingStatistics]:
        layer, expected = self.package.manifest.layers[index], case.expected
        view, name = case.view, layer.gates
        margins = view.margins(name, found.gates, expected.gates[index], expected.margins[index])
        gates, reference, place = view.of(name, found.gates, expected.gates[index])
        scores = _selected(view, name, found.scores, expected.scores, index)
        attention = _selected(view, name, found.attention, expected.attention, index)
        compared, flipped = layer_parity.compare_layer(
            layer_parity.LayerReference(
                path=layer.path,
                vectors=case.label,
                gates=reference,
                margins=margins,
                scores=scores[1],
                attention=attention[1],
                num_shared_heads=layer.num_shared_heads,
                has_scores=bool(expected.scores),
                place=place,
            ),
            layer_parity.LayerValuesFound(gates, scores[0], attention[0]),
            rule,
            floor=floor.of_layer(index),
            forced=forced,
        )
        bound = compared.margin_bound or rule.near_tie
        shared = layer.num_shared_heads
        return compared, routing_statistics.layer_statistics(
            layer.path, shared, gates, reference, margins, bound, flipped
        )

    def _floor(self, case: ComparedSet, got: Mapping[str, Array]) -> NoiseFloor:
        """Return the noise floor of each value that has a known floor."""
        if not self._rule.floor_factor:
            return NO_FLOOR
        rounding, precision = self.package.manifest.rounding, self.package.manifest.precision
        own = NO_FLOOR
        if rounding is not None:
            # Recorded by the export: nothing has to run here.
            compared = case.view.select(case.expected.outputs)
            own = noise_floor.recorded_floor(self.package, rounding, case.expected, compared)
        # Half precision is measured on the package itself; float32 without recorded figures has no
        # floor of its own.
        elif precision in noise_floor.NOISE:
            own = self._measured_floor(case, got, precision)
        if self._rule is self._own_rule:
            return own
        # Kernels round operands: that moves values beyond the model's own floor, which keeps the
        # factors of its own rule.
        rounded = self._measured_floor(case, got, tolerances.BFLOAT16_PRODUCTS)
        if own is NO_FLOOR:
            return rounded
        return rounded.joined(
            own,
            rms=self._own_rule.floor_factor / self._rule.floor_factor,
            largest=self._own_rule.peak_factor / self._rule.peak_factor,
        )

    def _measured_floor(self, case: ComparedSet, got: Mapping[str, Array], rule: str) -> NoiseFloor:
        """Measure how far the noise of a rule moves each value; nothing if it cannot be asked."""
        gates = self._gates_to_feed(case.expected, got)
        # Without variants, or with gates that do not fit, nothing can be run. Where feeding them is
        # refused, the noisy model runs by itself, and may flip no head.
        if gates is None and self._why_not is None:
            return NO_FLOOR
        if rule not in self._noisy:
            assert self.variants is not None
            types = {name: array.dtype for name, array in (gates or {}).items()}
            inner = self._inner if gates else [*self.package.gate_names, *self._inner]
            self._noisy[rule] = noise_floor.NoisyModel(self.variants, types, inner, rule)
        found = self._noisy[rule].results(_fed(case.expected, gates or {}))
        if found is None or (gates is None and found.has_flips(self.package.gate_names)):
            return NO_FLOOR
        named = computed_gates if gates else str
        outputs = found.selected(case.view.select)
        moves = {spec.name: outputs.move(spec.name) for spec in self.package.manifest.outputs}
        shows = (partial(self._compared, case, i, named) for i in range(len(case.expected.gates)))
        return NoiseFloor(moves, [found.of_layer(show) for show in shows])

    def _compared(
        self, case: ComparedSet, index: int, named: Named, got: Mapping[str, Array]
    ) -> layer_parity.LayerValuesFound:
        """Collect a layer's values from a run with noise, of the tokens that count."""
        found = self._found(case, index, got, named)
        name, view = self.package.manifest.layers[index].gates, case.view
        values = (found.gates, found.scores, found.attention)
        own = (None if value is None else view.of(name, value, value).reference for value in values)
        return layer_parity.LayerValuesFound(*own)

    def _gates_to_feed(
        self, expected: VectorSet, got: Mapping[str, Array]
    ) -> dict[str, Array] | None:
        """Return the reference gates in the dtypes of the model; None if they cannot be fed."""
        layers = self.package.manifest.layers
        if self.variants is None or not layers or len(expected.gates) != len(layers):
            return None
        recorded = dict(zip(self.package.gate_names, expected.gates, strict=True))
        # Gates of another shape would make the session fail, instead of being reported as
        # different.
        if any(k not in got or got[k].shape != v.shape for k, v in recorded.items()):
            return None
        if not self._asked:
            self._why_not, self._asked = self.variants.why_not_forced(), True
        if self._why_not is not None:
            return None
        # Fed in the dtype that the graph computes gates in: the reference's may be wider.
        return {name: gates.astype(got[name].dtype) for name, gates in recorded.items()}

    def _outputs(
        self,
        case: ComparedSet,
        got: Mapping[str, Array],
        rule: Tolerance,
        floor: NoiseFloor,
        *,
        skip_absent: bool = False,
        forced: bool = False,
    ) -> Iterator[OutputParity]:
        for spec in self.package.manifest.outputs:
            name = spec.name
            if name in case.expected.outputs:
                value, reference, place = case.view.of(
                    name, got.get(name), case.expected.outputs[name]
                )
                dtype = reference.dtype.name
                yield output_parity.compare_output(
                    name,
                    case.label,
                    value,
                    reference,
                    tolerances.output_rule(dtype, self._rule_for(dtype), rule),
                    floor=floor.outputs.get(name),
                    forced=forced,
                    place=place,
                    has_classes=holds_classes(spec),
                )
            elif not skip_absent:
                why = f"output '{name}' is not in vectors {case.label}."
                yield output_parity.incomparable_output(name, case.label, why)

    def _rule_for(self, dtype: str) -> Tolerance:
        self.rules[dtype] = self.policy.rule(dtype)
        return self.rules[dtype]


def _selected(
    view: TokenView, name: str, got: Array | None, references: Sequence[Array | None], index: int
) -> tuple[Array | None, Array | None]:
    """Select the tokens that count of a layer's value and of its reference; None without one."""
    reference = references[index] if references else None
    if reference is None:
        return None, None
    # Each by itself: the reference's scores tell ties also where the package's are not known.
    own = None if got is None else view.select({name: got})[name]
    return own, view.select({name: reference})[name]


def _fed(expected: VectorSet, gates: Mapping[str, Array]) -> dict[str, Array]:
    return {**expected.inputs, **{forced_gates(k): v for k, v in gates.items()}}
