"""Run a package on edge-case inputs and compare it with its function bodies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.forced_gates import GateTypes, computed_gates, forced_gates
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array, BoolArray
from moh_deploy.validate.compare.noise_floor import NOISE, NoisyModel
from moh_deploy.validate.compare.parity import compare_samples
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.edge_cases import routing_judge, source
from moh_deploy.validate.edge_cases.source import InputState
from moh_deploy.validate.reference.input_sets import known_size
from moh_deploy.validate.reference.layer_values import Recorder
from moh_deploy.validate.reference.reference import Variants
from moh_deploy.validate.reference.samples import Sample, label

_Values = Mapping[str, Array]


@dataclass(frozen=True)
class InputJudge:
    """Compares a package with its function bodies."""

    package: OnnxPackage  # the package
    subject: Runner  # a session of it as it is to be judged, that also returns the gates
    recorder: Recorder  # its function bodies
    variants: Variants | None  # opens it with gates fed to it; None where that cannot be
    policy: Policy  # what counts as equal
    # What a failed run is looked into with; None for what `compare` says of it.
    sides: source.Sides | None = None
    valid_tokens: str | None = None  # the input that is 0 for padding; None if all tokens count

    @classmethod
    def of(cls, sides: source.Sides) -> InputJudge:
        """Return the judge of what a probe compares."""
        runs = (sides.package, sides.runner, sides.recorder, sides.variants)
        return cls(*runs, sides.policy, sides, sides.valid_tokens)

    def judge(self, state: InputState) -> source.CaseResult:
        """Run a state, and say how it ended."""
        if state.inputs is None:
            # Not run: what the case needs is unknown. Not applicable: there is no such case.
            status: source.CaseStatus = "not run" if state.exists else "not applicable"
            return source.input_result(state.case, status, state.reason)
        try:
            expected = self.recorder.record(state.inputs)
        except (BackendError, ConfigError) as error:
            return self._without_reference(state.case, state.inputs, error.message)
        try:
            report = self.compare(expected)
        except (BackendError, ConfigError) as error:
            why = f"the function bodies run, but the package does not: {error.message}"
            return _failed(state.case, why)
        # Outputs first: they are what a user sees.
        entries: Sequence[OutputParity | LayerParity] = (*report.outputs, *report.layers)
        reasons = [entry.reason for entry in entries if entry.reason is not None]
        if not reasons:
            return _passed(state, expected, report)
        if unknown := rounding_may_explain(self.package, self.variants, expected, report):
            return source.input_result(state.case, "not run", unknown)
        more = f" ({len(reasons) - 1} more)" if len(reasons) > 1 else ""
        where = self.where(report, expected.inputs, expected.inputs)
        return _failed(state.case, f"{reasons[0]}{more}{where}")

    def compare(self, expected: VectorSet) -> ParityReport:
        """Compare a run of the package with what is expected, NaN included."""
        # `compare` takes NaN for unequal, so places where the reference has it are set to 0 on both
        # sides.
        nan = nan_in(self.package, expected)
        gates_known = not any(name in nan for name in self.package.gate_names)
        variants = self.variants if gates_known else None  # a NaN gate would be fed as 0
        valid = source.counted_tokens(expected, self.package.manifest, self.valid_tokens)
        zeroed = _zeroed(self.package, expected, nan)
        return compare_samples(
            self.package,
            NanKept(self.subject, nan),
            [Sample(zeroed, label("0", zeroed.sizes), valid=valid)],
            reference="function bodies with optimisations off",
            variants=None if variants is None else NanKeptVariants(variants, nan),
            policy=self.policy,
        )

    def where(
        self, report: ParityReport, known: _Values, inputs: _Values, cut: Cut | None = None
    ) -> str:
        """Return sentences, each behind a space, on where a run differs."""
        found = None
        if self.sides is not None:
            found = first_difference(self.sides, known, inputs, cut or whole)
        return "".join(f" {note}" for note in (report.notes if found is None else (found,)))

    def _without_reference(self, case: str, inputs: _Values, refusal: str) -> source.CaseResult:
        """Judge by shapes alone where the function bodies refuse the inputs."""
        try:
            got = self.subject.run(inputs)
        except (BackendError, ConfigError) as error:
            return self._refused(case, inputs, error.message)
        # Some function bodies refuse empty tensors; their shapes are still known from the manifest.
        sizes = check_inputs(self.package.manifest.inputs, inputs)
        outputs = [(spec, got[spec.name]) for spec in self.package.manifest.outputs]
        for spec, array in outputs:
            expected = [known_size(axis, sizes) for axis in spec.shape]
            # Axes whose size nothing tells are left out.
            fits = zip(expected, array.shape, strict=False)
            if array.ndim != len(expected) or any(n not in (None, size) for n, size in fits):
                shapes = f"{list(array.shape)}, expected {list(spec.shape)}"
                return _failed(case, f"output '{spec.name}' is of shape {shapes}.")
        if any(array.size for _, array in outputs):
            why = f"the package runs, and there is nothing to compare with: {refusal}"
            return source.input_result(case, "not run", why)
        detail = (
            "runs, and every output is empty, of the shape in the manifest (the function bodies"
            " refuse empty tensors: docs/ops.md)"
        )
        return source.input_result(case, "passed", detail)

    def _refused(self, case: str, inputs: _Values, refusal: str) -> source.CaseResult:
        """Both refuse: that is the model's own limit, unless a kernel of the package says no."""
        # A kernel's own error names its node; the runtime's errors of other nodes are the model's.
        layers = self.subject.describe().layer_impl.items()
        named = any(impl == "kernel" and f"'{name}'" in refusal for name, impl in layers)
        # A kernel that complains of shapes was given such: a Reshape before it guessed a size.
        if named and "; expected [" not in refusal:
            return _failed(case, f"a kernel refuses it: {refusal}")
        why = f"the model refuses it, function bodies and all: {refusal}"
        empty = any(array.size == 0 for array in inputs.values())
        return source.input_result(case, "not applicable" if empty else "not run", why)


def _passed(state: InputState, expected: VectorSet, report: ParityReport) -> source.CaseResult:
    made = expected.outputs.values()
    nan = sum(int(routing_judge.nan_places(array).sum()) for array in made)
    numbers = sum(array.size for array in made) - nan
    # All NaN would agree whatever the package does, so it proves nothing.
    if nan and not numbers:
        why = "the model itself gives NaN in every output, by its function bodies too: no data."
        return source.input_result(state.case, "not applicable", why)
    text = f"max abs error {report.max_abs_error:.3g}"
    if not numbers:
        text = "runs, and every output is empty, of the shape of the function bodies"
    explained = sum(layer.free_flips or layer.excused_tokens for layer in report.layers)
    text += f", {explained} flips explained by their margin" if explained else ""
    text += f"; {nan} elements are NaN in the function bodies too" if nan else ""
    text += f" ({state.remark})" if state.remark else ""
    return source.input_result(state.case, "passed", text)


def _failed(case: str, problem: str) -> source.CaseResult:
    return source.input_result(case, "failed", f"case '{case}': {problem}")


# Find the first layer in which a run differs from the reference.
#
# All layers attend by the gates of the reference, whatever their own routers choose: so an error in
# one layer does not change what later ones choose. Each router is judged by the logits that it
# reads itself, which no tie and no rounding before it can excuse or accuse.

Cut = Callable[[Array, Array | None], Array | None]
"""From a value of the known run, and one of the same name of another run where there is one, to
what is expected of that run; None where that is not known."""


def whole(value: Array, _: Array | None) -> Array:
    """Expect of another run what the known one has."""
    return value


def first_difference(
    sides: source.Sides, known: _Values, inputs: _Values, cut: Cut = whole
) -> str | None:
    """Say where a run of the subject first differs; None if no layer does.

    Args:
        sides: The package, and how the two are run.
        known: Inputs of the reference.
        inputs: Inputs of the subject.
        cut: What is expected of its inner values.
    """
    layers, policy = sides.routed, sides.policy
    read = (name for layer in layers for name in (*layer.router.logits.values(), *layer.values))
    seen = list(dict.fromkeys(read))
    try:
        expected = sides.reference.open(seen).run(known)
        # Run by itself first: its shapes tell which of the reference's gates fit this run.
        free = sides.subject.open(seen).run(inputs)
        fed = {}
        for name in dict.fromkeys(read.value for layer in layers for read in layer.reads):
            gates = cut(expected[name], free[name])
            # What is not known at this size stays as the subject's own router makes it.
            if gates is not None and gates.shape == free[name].shape:
                fed[name] = gates
        runner = sides.subject.open(seen, source.feeding(fed, seen))
        got = runner.run({**inputs, **source.fixed_values(fed)})
    except BackendError:
        return None  # Nothing can be said of a run that there is not.
    # Asked of the session that ran: kernels may round more than the precision of the package.
    rule = policy.model_rule(sides.package.manifest.precision, runner)

    def differs(name: str) -> bool:
        reference = cut(expected[name], got[name])
        if reference is None:
            return False
        tolerance = policy.output_rule(reference.dtype.name, rule)
        return routing_judge.values_mismatch(name, got[name], reference, tolerance) is not None

    # The first one: with the reference gates fed, later layers differ for its sake only.
    place = next(_differing(layers, got, differs), None)
    if place is None:
        return None
    return f"With the gates of the reference fed to every layer, it first differs in {place}."


def _differing(
    layers: Sequence[source.RoutedLayer], got: _Values, differs: Callable[[str], bool]
) -> Iterator[str]:
    """Yield the places that differ, in the order of computation."""
    before = ""
    for layer in layers:
        router, where = layer.router, f"layer '{layer.info.path}'"
        logits = {port: got[name] for port, name in router.logits.items()}
        if any(differs(name) for name in router.logits.values()):
            yield f"the logits that the router of {where} reads{before}"
        if routing_judge.GateJudge().mismatch("", router, logits, got[router.gates]) is not None:
            yield f"the router of {where}"
        # By the logits of this very run, so that an error before the router does not accuse it.
        made = routing_judge.router_reference(router, logits)
        for read in layer.reads:
            if routing_judge.read_problem(read, made, got) is not None:
                yield f"what {read.reader} of {where} reads as its gates"
        if router.attention is not None and differs(router.attention):
            yield f"the attention of {where}"
        before = f", behind {where}"


def rounding_may_explain(
    package: OnnxPackage, variants: Variants | None, expected: VectorSet, report: ParityReport
) -> str | None:
    """Say that rounding may have made all that differs, or return None if it cannot be told.

    A router of plain operators shows no scores, so a flip has no margin to explain it. In lower
    precision two runtimes round differently all the same, and in thousands of tokens some are tied.
    How many may be is asked of the package itself: of how many tokens the choice changes while its
    weights move by up to one step. No flip is excused by that: there is no data, and no failure.

    Args:
        package: The package, in lower precision; for one in float32 a flip stays a failure.
        variants: Opens it with gates fed to it, and with noise.
        expected: The run that it was compared with.
        report: The comparison. All that differs in it has to be heads of unknown margins, each
            layer having been given what the reference had seen.
    """
    precision = package.manifest.precision
    flipped = [layer for layer in report.layers if layer.reason is not None]
    if not flipped or any(output.reason is not None for output in report.outputs):
        return None
    of_unknown_margin = all(
        layer.forced and layer.wrong == ("choice",) and layer.flip_margin == math.inf
        for layer in flipped
    )
    if not of_unknown_margin or variants is None or precision not in NOISE:
        return None
    gates = dict(zip(package.gate_names, expected.gates, strict=True))
    noisy = NoisyModel(variants, {k: array.dtype for k, array in gates.items()}, (), precision)
    # Fed with the reference's gates, so that no layer stands behind the flips of another.
    fed = {forced_gates(name): array for name, array in gates.items()}
    found = noisy.results({**expected.inputs, **fed})
    if found is None:
        return None
    told = []
    for layer, gates_name in zip(report.layers, package.gate_names, strict=True):
        name = computed_gates(gates_name)
        still = found.exact[name] != 0
        # Tokens [B, S] that choose other heads, in the noisiest of some runs.
        moved = (((drawn[name] != 0) != still).any(axis=-1) for drawn in found.drawn)
        most = max(int(tokens.sum()) for tokens in moved)
        if layer.flipped_tokens > most:
            return None
        if layer.reason is not None:
            told.append(
                f"{layer.flipped_tokens} in layer '{layer.path}', where noise of one step of"
                f" {precision} in the weights changes the choice of {most}"
            )
    return (
        f"no data: tokens choose other heads, {'; '.join(told)}. Their routers are of plain"
        " operators, so it is unknown whether these are ties; all else agrees."
    )


NanPlaces = Mapping[str, BoolArray]
"""Name of an output, or of gates, to where one run of the reference has NaN."""


def nan_in(package: OnnxPackage, run: VectorSet) -> NanPlaces:
    """Return where a run has NaN; values without NaN are left out."""
    gates = dict(zip(package.gate_names, run.gates, strict=True))
    found = {
        name: routing_judge.nan_places(array) for name, array in {**run.outputs, **gates}.items()
    }
    kept = {name: places for name, places in found.items() if places.any()}
    # With gates fed, the router's own gates come back under another name.
    return {**kept, **{computed_gates(name): kept[name] for name in gates if name in kept}}


def _zeroed(package: OnnxPackage, run: VectorSet, nan: NanPlaces) -> VectorSet:
    """Return a run of the reference with 0 where it has NaN."""

    def zero(name: str, array: Array) -> Array:
        return _filled(array, nan[name], 0.0) if name in nan else array

    return replace(
        run,
        outputs={name: zero(name, array) for name, array in run.outputs.items()},
        gates=tuple(map(zero, package.gate_names, run.gates)),
    )


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
        got = dict(self.runner.run(inputs))
        for name, places in self.nan.items():
            if name in got and got[name].shape == places.shape:
                # NaN where the reference has a number stays, and fails. A number where it is NaN
                # becomes infinite: it agrees with nothing.
                both = places & routing_judge.nan_places(got[name])
                got[name] = _filled(_filled(got[name], places, np.inf), both, 0.0)
        return got


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
