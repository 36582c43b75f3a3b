"""Run a package on edge-case inputs and compare it with its function bodies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.forced_gates import GateTypes, computed_gates, forced_gates
from moh_deploy.package import OnnxPackage, TensorInfo, VectorSet
from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.compare.noise_floor import NOISE, NoisyModel
from moh_deploy.validate.compare.parity import compare_samples
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.edge_cases.input_states import InputState
from moh_deploy.validate.edge_cases.routing_judge import (
    GateJudge,
    nan_places,
    read_problem,
    router_reference,
    values_mismatch,
)
from moh_deploy.validate.edge_cases.source import (
    CaseResult,
    CaseStatus,
    RoutedLayer,
    Sides,
    feeding,
    fixed_values,
    input_result,
)
from moh_deploy.validate.reference.input_sets import known_size
from moh_deploy.validate.reference.layer_values import Recorder
from moh_deploy.validate.reference.samples import Sample, label, valid_tokens_of
from moh_deploy.validate.reference.subject import Variants

# Find the first layer in which a run differs from the reference.
#
# All layers attend by the gates of the reference, whatever their own routers choose: so an error in
# one layer does not change what later ones choose. Each router is judged by the logits that it
# reads itself, which no tie and no rounding before it can excuse or accuse.

_Values = Mapping[str, Array]
Cut = Callable[[Array, Array | None], Array | None]
"""From a value of the known run, and one of the same name of another run where there is one, to
what is expected of that run; None where that is not known."""


def whole(value: Array, _: Array | None) -> Array:
    """Expect of another run what the known one has."""
    return value


@dataclass(frozen=True)
class FirstDifference:
    """Looks into two runs.

    Attributes:
        sides: The package, and how the two are run.
    """

    sides: Sides

    def sentence(self, known: _Values, inputs: _Values, cut: Cut) -> str | None:
        """Return where a run of the subject first differs; None if no layer does.

        Args:
            known: Inputs of the reference.
            inputs: Inputs of the subject.
            cut: What is expected of its inner values.
        """
        try:
            expected = self.sides.reference.open(self._seen).run(known)
            place = self._first(expected, inputs, cut)
        except BackendError:
            return None  # Nothing can be said of a run that there is not.
        if place is None:
            return None
        return f"With the gates of the reference fed to every layer, it first differs in {place}."

    def _first(self, expected: _Values, inputs: _Values, cut: Cut) -> str | None:
        # Run by itself first: its shapes tell which of the reference's gates fit this run.
        subject, policy = self.sides.subject, self.sides.policy
        free = subject.open(self._seen).run(inputs)
        # The values that layers read as their gates.
        reads = dict.fromkeys(read.value for layer in self._layers for read in layer.reads)
        fed = {
            name: array
            for name in reads
            # What is not known at this size stays as the subject's own router makes it.
            if (array := cut(expected[name], free[name])) is not None
            and array.shape == free[name].shape
        }
        runner = subject.open(self._seen, feeding(fed, self._seen))
        got = runner.run({**inputs, **fixed_values(fed)})
        # Asked of the session that ran: kernels may round more than the precision of the package.
        rule = policy.model_rule(self.sides.package.manifest.precision, runner)

        def differs(name: str) -> bool:
            reference = cut(expected[name], got[name])
            if reference is None:
                return False
            tolerance = policy.output_rule(reference.dtype.name, rule)
            return values_mismatch(name, got[name], reference, tolerance) is not None

        # The first one: with the reference gates fed, later layers differ for its sake only.
        return next(self._differences(got, differs), None)

    def _differences(self, got: _Values, differs: Callable[[str], bool]) -> Iterator[str]:
        before = ""
        for layer in self._layers:
            router, where = layer.router, f"layer '{layer.info.path}'"
            # Each layer in its order of computation: logits, router, what is read as gates,
            # attention.
            logits = {port: got[name] for port, name in router.logits.items()}
            if any(differs(name) for name in router.logits.values()):
                yield f"the logits that the router of {where} reads{before}"
            if GateJudge().mismatch("", router, logits, got[router.gates]) is not None:
                yield f"the router of {where}"
            # By the logits of this very run, so that an error before the router does not accuse it.
            made = router_reference(router, logits)
            for read in layer.reads:
                if read_problem(read, made, got) is not None:
                    yield f"what {read.reader} of {where} reads as its gates"
            if router.attention is not None and differs(router.attention):
                yield f"the attention of {where}"
            before = f", behind {where}"

    @property
    def _layers(self) -> tuple[RoutedLayer, ...]:
        return self.sides.routing.routed

    @property
    def _seen(self) -> list[str]:
        names = ((*layer.router.logits.values(), *layer.values) for layer in self._layers)
        return list(dict.fromkeys(chain.from_iterable(names)))


# Tell whether rounding may be why tokens chose other heads, where nobody knows how near a tie is.
#
# A router of plain operators shows no scores, so a flip has no margin to explain it. In lower
# precision two runtimes round differently all the same, and in thousands of tokens some are tied.
# How many may be is asked of the package itself: of how many tokens the choice changes while its
# weights move by up to one step. No flip is excused by that: there is no data, and no failure.


def flips_of_noise(
    package: OnnxPackage, variants: Variants | None, expected: VectorSet, report: ParityReport
) -> str | None:
    """Say that rounding may have made all that differs, or return None if it cannot be told.

    Args:
        package: The package, in lower precision; for one in float32 a flip stays a failure.
        variants: Opens it with gates fed to it, and with noise.
        expected: The run that it was compared with.
        report: The comparison. All that differs in it has to be heads of unknown margins, each
            layer having been given what the reference had seen.
    """
    layers = report.layers
    flipped = [layer for layer in layers if layer.reason is not None]
    if any(output.reason is not None for output in report.outputs) or not all(
        map(_is_unknown, flipped)
    ):
        return None
    if not flipped or variants is None or package.manifest.precision not in NOISE:
        return None
    moved = _moved_tokens(package, variants, expected)
    if moved is None or any(
        layer.flipped_tokens > most for layer, most in zip(layers, moved, strict=True)
    ):
        return None
    told = [
        f"{layer.flipped_tokens} in layer '{layer.path}', where noise of one step of"
        f" {package.manifest.precision} in the weights changes the choice of {most}"
        for layer, most in zip(layers, moved, strict=True)
        if layer.reason is not None
    ]
    return (
        f"no data: tokens choose other heads, {'; '.join(told)}. Their routers are of plain"
        " operators, so nobody knows whether these are ties; all else agrees."
    )


def _is_unknown(layer: LayerParity) -> bool:
    is_choice = layer.wrong == ("choice",) and layer.flip_margin is not None
    return layer.forced and is_choice and math.isinf(layer.flip_margin or 0.0)


def _moved_tokens(
    package: OnnxPackage, variants: Variants, expected: VectorSet
) -> Sequence[int] | None:
    """Count for each layer the tokens that choose other heads in the noisiest of some runs."""
    gates = dict(zip(package.gate_names, expected.gates, strict=True))
    types = {name: array.dtype for name, array in gates.items()}
    noisy = NoisyModel(variants, types, (), package.manifest.precision)
    # Fed with the reference's gates, so that no layer stands behind the flips of another.
    fed = {forced_gates(name): array for name, array in gates.items()}
    found = noisy.results({**expected.inputs, **fed})
    if found is None:
        return None
    names = [computed_gates(name) for name in package.gate_names]
    return [
        max(
            int(((arrays[name] != 0) != (found.exact[name] != 0)).any(axis=-1).sum())
            for arrays in found.drawn
        )
        for name in names
    ]


_Inputs = Mapping[str, Array]

_REFERENCE = "function bodies with optimisations off"


@dataclass(frozen=True)
class InputJudge:
    """Compares a package with its function bodies.

    Attributes:
        package: The package.
        subject: A session of it as it is to be judged, that also returns the gates.
        recorder: Its function bodies.
        variants: Opens it with gates fed to it; None where that cannot be.
        policy: What counts as equal.
        place: Finds the layer in which a run first differs; None for what `compare` says of it.
        valid_tokens: The input that is 0 for padding; None if all tokens count.
    """

    package: OnnxPackage
    subject: Runner
    recorder: Recorder
    variants: Variants | None
    policy: Policy
    place: FirstDifference | None = None
    valid_tokens: str | None = None

    @classmethod
    def of(cls, sides: Sides) -> InputJudge:
        """Judge what a probe compares; where a run first differs is looked for only if one does."""
        runs = (sides.package, sides.runner, sides.recorder, sides.variants)
        return cls(*runs, sides.policy, FirstDifference(sides), sides.valid_tokens)

    def judge(self, state: InputState) -> CaseResult:
        """Run a state, and say how it ended."""
        # Not run: there is such a case, but nobody said what it needs. Not applicable: there is
        # none.
        if state.inputs is None:
            status: CaseStatus = "not run" if state.exists else "not applicable"
            return input_result(state.case, status, state.reason)
        try:
            expected = self.recorder.record(state.inputs)
        except (BackendError, ConfigError) as error:
            return self._without_reference(state, state.inputs, error.message)
        try:
            report = self.compare(expected)
        except (BackendError, ConfigError) as error:
            why = f"the function bodies run, but the package does not: {error.message}"
            return _failed(state, why)
        return self._judged(state, expected, report)

    def compare(self, expected: VectorSet) -> ParityReport:
        """Compare a run of the package with what is expected, NaN included."""
        # `compare` takes NaN for unequal, so places where the reference has it are set to 0 on both
        # sides.
        nan = NanPlaces.of(self.package, expected)
        gates_known = not any(name in nan.places for name in self.package.gate_names)
        variants = self.variants if gates_known else None  # a NaN gate would be fed as 0
        return compare_samples(
            self.package,
            NanKept(self.subject, nan),
            [self._sample(expected, nan.zeroed(self.package, expected))],
            reference=_REFERENCE,
            variants=None if variants is None else NanKeptVariants(variants, nan),
            policy=self.policy,
        )

    def _sample(self, expected: VectorSet, zeroed: VectorSet) -> Sample:
        """Return a run with the tokens that count; all of one that is nothing but padding."""
        found = valid_tokens_of(expected, {}, "run", self.package.manifest, self.valid_tokens)
        valid = found if found is not None and found.mask.any() else None
        return Sample(zeroed, label("0", zeroed.sizes), valid=valid)

    def where(self, report: ParityReport, known: _Inputs, inputs: _Inputs, cut: Cut = whole) -> str:
        """Return sentences, each behind a space, on where a run differs."""
        found = None if self.place is None else self.place.sentence(known, inputs, cut)
        return "".join(f" {note}" for note in (report.notes if found is None else (found,)))

    def _judged(self, state: InputState, expected: VectorSet, report: ParityReport) -> CaseResult:
        # Outputs first: they are what a user sees.
        entries: Sequence[OutputParity | LayerParity] = (*report.outputs, *report.layers)
        reasons = [entry.reason for entry in entries if entry.reason is not None]
        if reasons and (unknown := flips_of_noise(self.package, self.variants, expected, report)):
            return input_result(state.case, "not run", unknown)
        if reasons:
            more = f" ({len(reasons) - 1} more)" if len(reasons) > 1 else ""
            where = self.where(report, expected.inputs, expected.inputs)
            return _failed(state, f"{reasons[0]}{more}{where}")
        # All NaN would agree whatever the package does, so it proves nothing.
        made = expected.outputs.values()
        nan = sum(int(nan_places(array).sum()) for array in made)
        numbers = sum(array.size for array in made) - nan
        if nan and not numbers:
            why = "the model itself gives NaN in every output, by its function bodies too: no data."
            return input_result(state.case, "not applicable", why)
        return input_result(state.case, "passed", _compared(state, report, numbers, nan))

    def _without_reference(
        self, state: InputState, inputs: Mapping[str, Array], refusal: str
    ) -> CaseResult:
        """Judge by shapes alone where the function bodies refuse the inputs."""
        try:
            got = self.subject.run(inputs)
        except (BackendError, ConfigError) as error:
            return self._refused(state, inputs, error.message)
        # Some function bodies refuse empty tensors; their shapes are still known from the manifest.
        sizes = check_inputs(self.package.manifest.inputs, inputs)
        for spec in self.package.manifest.outputs:
            problem = _shape_problem(spec, got[spec.name], sizes)
            if problem is not None:
                return _failed(state, problem)
        if any(got[spec.name].size for spec in self.package.manifest.outputs):
            why = f"the package runs, and there is nothing to compare with: {refusal}"
            return input_result(state.case, "not run", why)
        detail = (
            "runs, and every output is empty, of the shape in the manifest (the function bodies"
            " refuse empty tensors: docs/ops.md)"
        )
        return input_result(state.case, "passed", detail)

    def _refused(self, state: InputState, inputs: Mapping[str, Array], refusal: str) -> CaseResult:
        """Both refuse. That is the model's own limit, unless a kernel of the package says no.

        A kernel that complains of shapes was given such: a Reshape before it guessed a size.
        """
        # A kernel's own error names its node; the runtime's errors of other nodes are the model's.
        layers = self.subject.describe().layer_impl.items()
        named = any(impl == "kernel" and f"'{name}'" in refusal for name, impl in layers)
        if named and "; expected [" not in refusal:
            return _failed(state, f"a kernel refuses it: {refusal}")
        why = f"the model refuses it, function bodies and all: {refusal}"
        empty = any(array.size == 0 for array in inputs.values())
        return input_result(state.case, "not applicable" if empty else "not run", why)


def _shape_problem(spec: TensorInfo, got: Array, sizes: Mapping[str, int]) -> str | None:
    expected = [known_size(axis, sizes) for axis in spec.shape]
    # Axes whose size nothing tells are left out.
    pairs = zip(expected, got.shape, strict=False)
    if got.ndim == len(expected) and all(number in (None, size) for number, size in pairs):
        return None
    return f"output '{spec.name}' is of shape {list(got.shape)}, expected {list(spec.shape)}."


def _compared(state: InputState, report: ParityReport, numbers: int, nan: int) -> str:
    text = f"max abs error {report.max_abs_error:.3g}"
    if not numbers:
        text = "runs, and every output is empty, of the shape of the function bodies"
    explained = sum(layer.free_flips or layer.excused_tokens for layer in report.layers)
    text += f", {explained} flips explained by their margin" if explained else ""
    text += f"; {nan} elements are NaN in the function bodies too" if nan else ""
    return text + (f" ({state.remark})" if state.remark else "")


def _failed(state: InputState, problem: str) -> CaseResult:
    return input_result(state.case, "failed", f"case '{state.case}': {problem}")


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

    def zeroed_where_nan(self, name: str, array: Array) -> Array:
        """Return a result with 0 where both it and the reference are NaN.

        A number where the reference is NaN becomes infinite: it agrees with nothing.
        """
        places = self.places.get(name)
        if places is None or places.shape != array.shape:
            return array
        found = nan_places(array)
        # NaN where the reference has a number stays, and fails.
        return _filled(_filled(array, places & found, 0.0), places & ~found, np.inf)

    def _zero(self, name: str, array: Array) -> Array:
        places = self.places.get(name)
        return array if places is None else _filled(array, places, 0.0)


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
        got = self.runner.run(inputs)
        return {name: self.nan.zeroed_where_nan(name, array) for name, array in got.items()}


@dataclass(frozen=True)
class NanKeptVariants:
    """Variants of a model whose forced runs keep NaN in the same way."""

    variants: Variants
    nan: NanPlaces

    def why_not_forced(self) -> str | None:
        return self.variants.why_not_forced()

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        return NanKept(self.variants.forced(gates, inner), self.nan)

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        # Not wrapped: noise measures how far the package moves from itself, NaN and all.
        return self.variants.noisy(noise, gates, inner)
