"""Judge a variant of a package by all recorded values of the original."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from moh_deploy.graph.forced_gates import computed_gates
from moh_deploy.package import LayerInfo, LayerRounding, Spread, VectorSet
from moh_deploy.report.report import HIDDEN
from moh_deploy.runtime.base import Runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array
from moh_deploy.validate.bisection.places import ForcedModel
from moh_deploy.validate.compare.layer_parity import LayerReference, LayerValuesFound, compare_layer
from moh_deploy.validate.compare.noise_floor import NOISE, NoisyModel, recorded_floor
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.compare.tolerances import Tolerance
from moh_deploy.validate.reference.differences import abs_error, largest, worst
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values
from moh_deploy.validate.reference.samples import own_view
from moh_deploy.validate.reference.valid_tokens import TokenView

# The values of the original model that a package has on record, and where a run computes them.

Read = Callable[[Array], Array | None]
"""From a value of a run to what was recorded of it; None where it is of another form."""


@dataclass(frozen=True)
class RecordedValue:
    """One value of one recorded run."""

    what: str  # `output 'y'`, or `router of 'blocks.0.attn'`
    value: str  # its name in the graph that has gates fed to it
    expected: Array  # what the original computed
    # Path of the layer whose gates these are; None for what chooses no heads.
    layer: str | None = None
    margins: Array | None = None  # how clear each token's choice is, [B, S], of gates
    # What their router ranked, see `VectorSet.scores`; None if it is not known.
    scores: Array | None = None
    num_shared_heads: int | None = None  # of gates, as in `LayerInfo`
    # What is to be done with the run's value before it is compared.
    read: Read = lambda value: value
    inner: bool = False  # it is neither gates nor an output: a session has to be asked for it
    gates: str | None = None  # the name of the gates whose tokens it has, of an inner value

    def of(self, got: Mapping[str, Array]) -> Array | None:
        """Return it as a run computed it; None if the run did not."""
        made = got.get(self.value)
        if made is None:
            return None
        # Variants may compute gates in another dtype than the recorded ones: that is no mismatch.
        return self.read(made if self.layer is None else made.astype(self.expected.dtype))

    def drift(self, got: Array | None, expected: Array) -> float | None:
        """Return the largest difference of two runs where none of them jumps.

        Another choice of heads moves gates by a jump, however small its cause is: tokens that
        choose other heads do not count. Integers only jump.

        Returns:
            The largest difference; None where there is nothing to take it from.
        """
        # Integers and booleans only jump.
        if got is None or got.shape != expected.shape or expected.dtype.kind in "biu":
            return None
        error = abs_error(got, expected)
        if self.layer is not None:
            # [tokens, H] of the tokens that chose the same heads.
            error = error[((got != 0) == (expected != 0)).all(axis=-1)]
        return largest(error) if error.size else None

    def moved(self, still: Mapping[str, Array], got: Mapping[str, Array]) -> float | None:
        """Return how far it moves from one run to another, as `drift` does."""
        before = self.of(still)
        return None if before is None else self.drift(self.of(got), before)


def recorded_values(
    layers: Sequence[LayerInfo], vectors: VectorSet, shown: Sequence[LayerValues] = ()
) -> Iterator[RecordedValue]:
    """Yield what was recorded of one run, in the order in which it is computed.

    Every value that is yielded is compared, and bounds the place of a fault.

    Args:
        layers: In the order in which they run; none where their gates are not fed.
        vectors: The run.
        shown: Where the inner values of each layer are; empty to leave them out.
    """
    # Packages of earlier versions have no scores.
    scores = vectors.scores or (None,) * len(layers)
    recorded = zip(layers, vectors.gates, vectors.margins, scores, strict=False)
    # In the order in which a layer computes: scores, gates, attention.
    for index, (layer, gates, margins, ranked) in enumerate(recorded):
        values, tokens = shown[index] if shown else None, gates.shape[:2]
        if values is not None and values.logits is not None and ranked is not None:
            read = partial(_scores, values, tokens)
            what = f"scores of '{layer.path}'"
            yield RecordedValue(
                what, values.logits, ranked, read=read, inner=True, gates=layer.gates
            )
        yield RecordedValue(
            f"router of '{layer.path}'",
            computed_gates(layer.gates),
            gates,
            layer.path,
            margins,
            ranked,
            layer.num_shared_heads,
        )
        attention = vectors.attention[index] if vectors.attention else None
        if values is not None and values.attention is not None and attention is not None:
            read = partial(_fingerprint, values, tokens)
            what = f"attention of '{layer.path}'"
            yield RecordedValue(
                what, values.attention, attention, read=read, inner=True, gates=layer.gates
            )
    for name, expected in vectors.outputs.items():
        yield RecordedValue(f"output '{name}'", name, expected)


def _scores(values: LayerValues, tokens: tuple[int, ...], logits: Array) -> Array | None:
    assert values.logits is not None
    return values.scores({values.logits: logits}, tokens)


def _fingerprint(values: LayerValues, tokens: tuple[int, ...], attention: Array) -> Array | None:
    assert values.attention is not None
    return values.fingerprint({values.attention: attention}, tokens)


@dataclass(frozen=True)
class Recorded:
    """One recorded value, and how far a run is from it."""

    what: str  # `output 'y'`, or `router of 'blocks.0.attn'`
    value: str  # its name in the graph that has gates fed to it
    error: float  # largest absolute error over all vector sets; NaN if a number is
    limit: float  # what the rule allows; of the vector set with the largest share of it
    reason: str | None  # a sentence on why it is not equal; None if it is
    # The largest error where the same heads are chosen, over all vector sets; None where there is
    # nothing to take it from.
    drift: float | None = field(default=None, metadata=HIDDEN)

    @property
    def badness(self) -> tuple[bool, float]:
        """To order by: what is wrong comes behind all that is not, whatever its share is."""
        return (self.reason is not None, self.share)

    @property
    def share(self) -> float:
        """The error as a share of the limit; infinite for NaN and for what cannot be compared."""
        if math.isnan(self.error):
            return math.inf
        return self.error / self.limit if self.limit else math.inf if self.error else 0.0


@dataclass
class VariantJudge:
    """Runs variants of one package, all by the rule that the package itself is judged by."""

    # The package. Its noise floor holds for all its variants: with more of them in float32 it would
    # be lower, and each step to the better would be asked for more.
    judged: ForcedModel
    vectors: Sequence[VectorSet]  # what to run, and what to expect
    policy: Policy  # what counts as equal
    # How far outputs may be off, as a share of their largest value (at least of 1), in place of the
    # policy's figure.
    target: float | None = None
    _made: dict[Path, frozenset[str]] = field(default_factory=dict)

    def judge(self, model: ForcedModel, *, inner: bool = False) -> tuple[Recorded, ...]:
        """Run a variant on all vector sets, and return the worst of each recorded value.

        Args:
            model: The variant.
            inner: Look at inner values too, see `values`.
        """
        runner = self.open(model, inner=inner)
        found: dict[str, Recorded] = {}
        rule = self.policy.model_rule(self.judged.package.manifest.precision, runner)
        # Without forced gates flips cannot be excluded, so the looser rule applies.
        rule = rule if self.judged.gates else rule.after_flip()
        for index, vectors in enumerate(self.vectors):
            got = runner.run(model.inputs(vectors))
            for value in self.values(model, vectors, inner=inner):
                point = self._compare(value, model, rule, index, got)
                # Of several vector sets the worst one stands for the value.
                known = found.get(point.value, point)
                drifts = [run.drift for run in (known, point) if run.drift is not None]
                found[point.value] = replace(
                    max(known, point, key=lambda run: run.badness),
                    drift=worst(drifts) if drifts else None,
                )
        return tuple(found.values())

    def values(
        self, model: ForcedModel, vectors: VectorSet, *, inner: bool
    ) -> tuple[RecordedValue, ...]:
        """Return the recorded values that a run of a variant is compared with.

        Args:
            model: The variant.
            vectors: The run.
            inner: With the inner values that the variant makes. They say where a model is wrong;
                whether it is, gates and outputs do. And ONNX Runtime does not optimise across what
                it has to return.
        """
        # Without forced gates, everything behind the first flip differs, so no gates are compared.
        layers = self.judged.package.manifest.layers if model.gates else ()
        return tuple(
            recorded_value
            for recorded_value in recorded_values(layers, vectors, self._shown if inner else ())
            # A variant may have lost an inner value to a rewrite, or have made an output of it.
            if not recorded_value.inner or (inner and recorded_value.value in self._made_by(model))
        )

    def open(self, model: ForcedModel, *, inner: bool) -> Runner:
        """Open a session of a variant that returns all that it is compared with."""
        values = self.values(model, self.vectors[0], inner=inner) if self.vectors else ()
        return model.open([value.value for value in values if value.inner])

    @cached_property
    def _shown(self) -> tuple[LayerValues, ...]:
        """The names of the layers' inner values; empty where no run recorded any."""
        known = any(vector_set.scores or vector_set.attention for vector_set in self.vectors)
        return layer_values(self.judged.package) if known else ()

    @cached_property
    def _views(self) -> list[TokenView]:
        """What is compared of each run: padding, as the package says it, is not."""
        manifest = self.judged.package.manifest
        views = [
            own_view(manifest, vector_set, str(index))
            for index, vector_set in enumerate(self.vectors)
        ]
        # Gates that a router makes go by another name where others are fed.
        others = {computed_gates(name): name for name in self.judged.gates}
        return [view.also(others) for view in views]

    def _made_by(self, model: ForcedModel) -> frozenset[str]:
        """Return the inner values that a variant makes. One that is an output is known as that."""
        root = model.package.root
        if root not in self._made:
            nodes = model.graph().node
            outputs = {spec.name for spec in model.package.manifest.outputs}
            self._made[root] = frozenset(n for node in nodes for n in node.output) - outputs
        return self._made[root]

    def _compare(
        self,
        value: RecordedValue,
        model: ForcedModel,
        rule: Tolerance,
        index: int,
        got: Mapping[str, Array],
    ) -> Recorded:
        floor = self._floors[index].get(value.value)
        label = f"{index}, routing forced" if model.gates else f"{index}"
        # What was recorded of a value may be less than the value: a fingerprint of attention, say.
        whole, view, name = value.of(got), self._views[index], value.gates or value.value
        made, expected, place = view.of(name, whole, value.expected)
        drift = value.drift(made, expected)
        if value.layer is not None and value.margins is not None:
            scores = value.scores
            reference = LayerReference(
                value.layer,
                label,
                expected,
                view.margins(name, whole, value.expected, value.margins),
                scores=None if scores is None else view.of(name, scores, scores).reference,
                num_shared_heads=value.num_shared_heads,
                has_scores=scores is not None,
                place=place,
            )
            known = None if floor is None else LayerRounding(None, floor, None)
            found = LayerValuesFound(made)
            gates, _ = compare_layer(reference, found, rule, floor=known, forced=True)
            error, limit = gates.gate_error, gates.gate_tolerance
            # A flip that may be a tie accuses nothing.
            reason = None if gates.no_data else gates.reason
            return Recorded(value.what, value.value, error, limit, reason, drift)
        dtype = expected.dtype.name
        own = self.policy.output_rule(dtype, rule)
        if self.target is not None and "float" in dtype:
            # The target is the user's own figure: neither a floor nor a least step softens it.
            own = replace(own, relative=self.target, floor_factor=0.0, least=0.0)
        output = compare_output(
            value.value, label, made, expected, own, floor=floor, forced=True, place=place
        )
        error, limit = output.max_abs_error, output.tolerance or 0.0
        return Recorded(value.what, value.value, error, limit, output.reason, drift)

    @cached_property
    def _floors(self) -> Sequence[Mapping[str, Spread]]:
        """The noise floor of each vector set, by the names of the values."""
        package, gates = self.judged.package, self.judged.gates
        precision, rounding = package.manifest.precision, package.manifest.rounding
        floors: list[dict[str, Spread]] = [{} for _ in self.vectors]
        runs = zip(floors, self.vectors, self._views, strict=True)
        # Float32: the export measured the floor on the original.
        if rounding is not None:
            for known, run, view in runs:
                floor = recorded_floor(package, rounding, run, view.select(run.outputs))
                # With gates fed, a router's own go by another name.
                names = [computed_gates(layer.gates) for layer in package.manifest.layers]
                pairs = zip(names, floor.layers, strict=True)
                known |= {**floor.outputs, **{name: layer.gates for name, layer in pairs}}
        # Half precision: measured here, with the gates fed, as flips would exceed any rounding.
        elif precision in NOISE and (gates or not package.manifest.layers):
            noisy = NoisyModel(PackageVariants(package), gates, (), precision)
            chosen = set(map(computed_gates, gates))
            for known, run, view in runs:
                found = noisy.results(self.judged.inputs(run))
                if found is not None:
                    found = found.selected(view.select)
                    known |= {k: found.move(k, only_chosen=k in chosen) for k in found.exact}
        return floors
