"""Compare a runtime with reference vectors: outputs, chosen heads, gates.

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

from moh_deploy.backends.runner import Runner
from moh_deploy.npz import Array
from moh_deploy.package import LayerInfo, OnnxPackage, VectorSet, computed_gates, forced_gates
from moh_deploy.validate.diagnosis import diagnosis
from moh_deploy.validate.layer_parity import compare_layer, incomparable_layer
from moh_deploy.validate.noise_floor import STEPS, measure_floor
from moh_deploy.validate.output_parity import (
    compare_output,
    incomparable_output,
    unjudged_output,
)
from moh_deploy.validate.parity_report import LayerParity, OutputParity, ParityReport
from moh_deploy.validate.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.reference import RECORDED
from moh_deploy.validate.routing_statistics import (
    NO_STATISTICS,
    RoutingStatistics,
    joined,
    layer_statistics,
)
from moh_deploy.validate.samples import label
from moh_deploy.validate.tolerances import BFLOAT16_PRODUCTS, Tolerance, coarsest
from moh_deploy.validate.variants import Variants


def compare(
    package: OnnxPackage,
    runner: Runner,
    vectors: Sequence[VectorSet],
    *,
    labels: Sequence[str] = (),
    reference: str = RECORDED,
    outputs_only: bool = False,
    variants: Variants | None = None,
    policy: Policy = BUILT_IN_POLICY,
) -> ParityReport:
    """Run every vector set and compare outputs, chosen heads and gates with it.

    Args:
        package: Says which outputs and layers there are.
        runner: A session of it that also returns the values `package.gate_names`.
        vectors: What to run, and what to expect.
        labels: How reports call each of them; empty for their numbers and sizes.
        reference: Where the expected values come from, for the report.
        outputs_only: The vectors hold no gates, and maybe not every output: compare what they hold.
        variants: Opens the model with gates fed to it. Without, what is behind a flip is judged by
            a looser rule, and half precision by the most that its rule allows.
        policy: What counts as equal.

    Raises:
        ConfigError: The vectors' inputs do not fit the model.
        BackendError: The runtime failed.
    """
    judge = _Judge(package, runner, policy, None if outputs_only else variants)
    names = labels or [label(str(index), one.sizes) for index, one in enumerate(vectors)]
    judged = [
        judge.outputs_of(one, name) if outputs_only else judge.everything(one, name)
        for one, name in zip(vectors, names, strict=True)
    ]
    impls = list(runner.layer_impl.values())
    return ParityReport(
        reference=reference,
        vector_sets=len(vectors),
        outputs=tuple(output for one in judged for output in one.outputs),
        layers=tuple(layer for one in judged for layer in one.layers),
        has_routing=not outputs_only,
        kernel_nodes=impls.count("kernel"),
        function_nodes=impls.count("function"),
        layer_runs=runner.layer_runs,
        kernels=runner.kernels,
        rules=judge.rules,
        policy=policy.source,
        notes=tuple(dict.fromkeys(note for one in judged for note in one.notes)),
        statistics=joined(one.statistics for one in judged),
    )


@dataclass(frozen=True)
class _Judged:
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
class _Judge:
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

    def outputs_of(self, expected: VectorSet, label: str) -> _Judged:
        """Compare the outputs alone. Without gates a flip cannot be seen, so there may be some."""
        got, rule = self.runner.run(expected.inputs), self._rule.after_flip()
        wanted = replace(expected, gates=(), margins=())
        return _Judged(list(self._outputs(wanted, got, label, rule, {}, skip_absent=True)))

    def everything(self, expected: VectorSet, label: str) -> _Judged:
        got = self.runner.run(expected.inputs)
        floor = self._floor(expected, got)
        free = self._free(expected, got, label, floor)
        if not free.flips and free.equal:
            return free
        forced = self._forced_run(expected, got, label, floor)
        if forced is None:
            return replace(free, notes=self._note())
        notes = () if forced.equal and free.flips else (diagnosis(forced.layers, forced.outputs),)
        if not free.flips:
            return replace(free, notes=notes)
        unjudged = list(_unjudged(self.package, expected, got, label))
        layers = [_merged(*pair) for pair in zip(forced.layers, free.layers, strict=True)]
        statistics = replace(free.statistics, margins=forced.statistics.margins)
        return _Judged([*forced.outputs, *unjudged], layers, notes, statistics)

    def _free(
        self, expected: VectorSet, got: Mapping[str, Array], label: str, floor: Mapping[str, float]
    ) -> _Judged:
        """Judge the model left to itself; behind an explained flip by the looser rule."""
        layers: list[LayerParity] = []
        counts: list[RoutingStatistics] = []
        rule = self._rule
        for layer, gates, margins in self._layers(expected):
            value = got.get(layer.gates)
            if gates is None or margins is None:
                reason = f"gates of layer '{layer.path}' are not in vectors {label}."
                layers.append(incomparable_layer(layer.path, label, reason))
                continue
            counts.append(self._count(layer, value, gates, margins))
            known = floor.get(computed_gates(layer.gates))
            layers.append(
                compare_layer(layer.path, label, value, gates, margins, rule, floor=known)
            )
            if layers[-1].excused_tokens:
                rule, floor = rule.after_flip(), {}
        outputs = list(self._outputs(expected, got, label, rule, floor))
        return _Judged(outputs, layers, statistics=joined(counts))

    def _forced_run(
        self, expected: VectorSet, got: Mapping[str, Array], label: str, floor: Mapping[str, float]
    ) -> _Judged | None:
        """Judge the model with the reference gates fed to it; None if they cannot be."""
        gates = self._gates_to_feed(expected, got)
        if gates is None:
            return None
        assert self.variants is not None
        if self._forced is None:
            self._forced = self.variants.forced({k: v.dtype for k, v in gates.items()})
        got = self._forced.run(self._inputs(expected, gates))
        layers = [
            compare_layer(
                layer.path,
                f"{label}, routing forced",
                got.get(computed_gates(layer.gates)),
                reference,
                margins,
                self._rule,
                floor=floor.get(computed_gates(layer.gates)),
                forced=True,
            )
            for layer, reference, margins in self._layers(expected)
            if reference is not None and margins is not None
        ]
        counts = [
            self._count(layer, got.get(computed_gates(layer.gates)), reference, margins)
            for layer, reference, margins in self._layers(expected)
            if reference is not None and margins is not None
        ]
        label = f"{label}, routing forced"
        outputs = self._outputs(expected, got, label, self._rule, floor, forced=True)
        return _Judged(list(outputs), layers, statistics=joined(counts))

    def _count(
        self, layer: LayerInfo, got: Array | None, reference: Array, margins: Array
    ) -> RoutingStatistics:
        shared, bound = layer.num_shared_heads, self._rule.near_tie
        return layer_statistics(layer.path, shared, got, reference, margins, bound)

    def _floor(self, expected: VectorSet, got: Mapping[str, Array]) -> dict[str, float]:
        """Return the noise floor of each value; nothing where there is none, or no way to ask."""
        precision = self.package.manifest.precision
        if precision not in STEPS or not self._rule.floor_factor:
            return {}
        gates = self._gates_to_feed(expected, got)
        if gates is None:
            return {}
        assert self.variants is not None
        if self._noisy is None:
            self._noisy = self.variants.noisy({k: v.dtype for k, v in gates.items()})
        if self._noisy is None:
            return {}
        names = frozenset(map(computed_gates, gates))
        inputs = self._inputs(expected, gates)
        return measure_floor(self._noisy, inputs, precision, gates=names)

    def _gates_to_feed(
        self, expected: VectorSet, got: Mapping[str, Array]
    ) -> dict[str, Array] | None:
        """Return the reference gates in the dtypes of the model; None if they cannot be fed."""
        layers = self.package.manifest.layers
        if self.variants is None or not layers or len(expected.gates) != len(layers):
            return None
        if any(layer.gates not in got for layer in layers):
            return None
        if not self._asked:
            self._why_not, self._asked = self.variants.why_not_forced(), True
        if self._why_not is not None:
            return None
        pairs = zip(layers, expected.gates, strict=True)
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
        expected: VectorSet,
        got: Mapping[str, Array],
        label: str,
        rule: Tolerance,
        floor: Mapping[str, float],
        *,
        skip_absent: bool = False,
        forced: bool = False,
    ) -> Iterator[OutputParity]:
        for name in (spec.name for spec in self.package.manifest.outputs):
            if name in expected.outputs:
                reference = expected.outputs[name]
                yield compare_output(
                    name,
                    label,
                    got.get(name),
                    reference,
                    self._output_rule(reference.dtype.name, rule),
                    floor=floor.get(name),
                    forced=forced,
                )
            elif not skip_absent:
                yield incomparable_output(
                    name, label, f"output '{name}' is not in vectors {label}."
                )

    def _model_rule(self) -> Tolerance:
        """Return the rule for the model's precision and for what its kernels compute in."""
        names = [self.package.manifest.precision]
        on_kernels = "kernel" in self.runner.layer_impl.values()
        if on_kernels and self.runner.kernels.compute_type == "bfloat16":
            names.append(BFLOAT16_PRODUCTS)
        return coarsest(*map(self._rule_for, names))

    def _output_rule(self, dtype: str, model_rule: Tolerance) -> Tolerance:
        """Return the coarser one: logits cast to float32 still carry the rounding of the model."""
        rule = self._rule_for(dtype)
        return coarsest(rule, model_rule) if "float" in dtype else rule

    def _rule_for(self, dtype: str) -> Tolerance:
        self.rules[dtype] = self.policy.rule(dtype)
        return self.rules[dtype]


_RecordedLayer = tuple[LayerInfo, Array | None, Array | None]


def _unjudged(
    package: OnnxPackage, expected: VectorSet, got: Mapping[str, Array], label: str
) -> Iterator[OutputParity]:
    label = f"{label}, behind a flip"
    for name in (spec.name for spec in package.manifest.outputs):
        if name in expected.outputs:
            yield unjudged_output(name, label, got.get(name), expected.outputs[name])


def _merged(forced: LayerParity, free: LayerParity) -> LayerParity:
    """Return the judgement under forced routing, with what was seen of the model by itself."""
    reason = forced.reason or (free.reason if math.isnan(free.gate_error) else None)
    return replace(forced, reason=reason, free_flips=free.flipped_tokens + free.excused_tokens)
