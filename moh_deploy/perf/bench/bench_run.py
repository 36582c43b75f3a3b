"""Load the candidates of a benchmark, let them take turns, and collect what was measured."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from moh_deploy.errors import ConfigError
from moh_deploy.package import VectorSet
from moh_deploy.perf.bench.candidate import (
    FixedRouters,
    FreshRun,
    FreshTask,
    Latency,
    LoadedCandidate,
    MeasureFresh,
    MeasureRuns,
    RoutingOverhead,
    Timing,
)
from moh_deploy.perf.bench.candidates import (
    BenchSetting,
    Candidates,
    is_the_original,
    is_the_package,
)
from moh_deploy.perf.bench.gates import BenchGate, GateResult
from moh_deploy.perf.bench.measured import Agreement, Measured, PackageWork, agreement, layer_work
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.environment import Processor
from moh_deploy.perf.timing import difference, ratio
from moh_deploy.runtime.original import Original
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.parity import compare_answered
from moh_deploy.validate.compare.parity_report import combined
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.reference import samples
from moh_deploy.validate.reference.input_sets import InputSet, batch_dim, num_samples
from moh_deploy.validate.reference.reference import RecordedReference, Reference, Subject, by_gates
from moh_deploy.validate.reference.references import function_bodies

# Look for candidates that compute something wrong: these pass no gate (ADR 26).
#
# Every package is compared with its recorded runs, as `verify` does. On the inputs that are timed
# its outputs must not be NaN; and where they differ from those of a baseline that is the same
# model, it is compared with that model again, with its gates: a token whose heads are nearly tied
# may have chosen others, and nothing else may.


@dataclass(frozen=True)
class FaultFinder:
    """Looks for packages and engines that compute something else than they should."""

    candidates: Candidates  # what is measured
    original: Original | None  # what baselines of the original are, or None

    def in_recorded_runs(self) -> dict[str, str]:
        """Compare packages and engines with their recorded runs; return faults by name, in words.

        Raises:
            BackendError: The runtime failed.
        """
        found = {}
        for name, subject in self.candidates.subjects.items():
            sets, words = subject.recorded()
            why = _difference(subject, RecordedReference(words), samples.recorded_samples(sets))
            if why is not None:
                found[name] = why
        return found

    def in_timed_run(
        self,
        input_set: InputSet,
        outputs: Mapping[str, Sequence[Array]],
        agreements: Mapping[str, Agreement],
    ) -> dict[str, str]:
        """Look for faults on inputs that are timed; return them by name, in words.

        Args:
            one: The inputs.
            outputs: Of all candidates, by name.
            agreements: Of all but the first of them with it.

        Returns:
            What is wrong, by name. A baseline can be no more than NaN.

        Raises:
            MoHDeployError: A reference cannot be run.
        """
        found = {
            name: f"its outputs on {samples.label(input_set.name, input_set.sizes)} hold NaN"
            for name, arrays in outputs.items()
            # Only NaN differs from itself; unlike `isnan` this takes text, too.
            if any((array != array).any() for array in arrays)
        }
        first, subject = next(iter(self.candidates.subjects.items()))
        # A baseline of other weights differs by right. Only where one of the same model differs,
        # the costly comparison with gates tells a flip of nearly tied heads from a fault.
        differing = [name for name, how in agreements.items() if how.reason is not None]
        # NaN is wrong whatever the reference says.
        # Nothing was recorded on these inputs: the reference answers them when it is asked.
        vectors = VectorSet(input_set.sizes, input_set.inputs, {}, (), ())
        sample = samples.Sample(vectors, samples.label(input_set.name, input_set.sizes))
        for reference in () if first in found else self._same_model(differing):
            why = _difference(subject, reference, [sample])
            if why is not None:
                found.setdefault(first, why)
        return found

    def _same_model(self, differing: Sequence[str]) -> Iterator[Reference]:
        """Yield references that tell whether the first package is wrong where baselines differ."""
        if any(map(is_the_package, differing)):
            yield function_bodies(self.candidates.first)
        # Not every original can say its gates: only one that is a `Reference` can be compared with.
        original: object = self.original
        if not any(map(is_the_original, differing)) or not isinstance(original, Reference):
            return
        # One of other weights is no reference.
        if self.original and not self.candidates.is_of_another_checkpoint(self.original):
            yield original


def _difference(
    subject: Subject, reference: Reference, runs: Sequence[samples.Sample]
) -> str | None:
    manifest = subject.package.manifest
    known = samples.with_valid_tokens(runs, manifest, manifest.valid_tokens)
    answers = reference.answers(subject.package, known)
    with subject.load() as runner:
        reports = [
            compare_answered(subject, runner, part, known, BUILT_IN_POLICY)
            for part in by_gates(reference.name, answers)
        ]
    failure = combined(reports).failure
    return None if failure is None else f"against {reference.name} it is {failure.message}"


@dataclass(frozen=True)
class BenchRun:
    """Runs one benchmark: proves, times and reports its candidates."""

    candidates: Candidates  # what is measured
    setting: BenchSetting  # how they are run
    measure: MeasureRuns  # what times candidates
    measure_fresh: MeasureFresh  # what runs one in a process of its own
    progress: Progress  # what to report steps to
    judged: bool  # something may fail, a gate or a baseline file: what is measured has to be right

    def report(
        self,
        sets: Sequence[InputSet],
        gates: Sequence[BenchGate],
        *,
        min_time: float,
        warmup: float,
    ) -> BenchReport:
        """Measure all candidates on each set of inputs, and judge packages by gates.

        Raises:
            ConfigError: A candidate does not take the inputs.
            BackendError: A runtime failed.
        """
        faults = {}
        if self.judged:
            # Before anything is timed, and in sessions of its own, which are closed again: memory
            # and threads of these disturb no later candidate.
            with self.progress.step("comparing with the recorded runs"):
                faults = self._finder.in_recorded_runs()
        with ExitStack() as stack:
            with self.progress.step("loading the models"):
                # All stay open together, as they take turns.
                loaded: dict[str, LoadedCandidate] = {}
                for entry in self.candidates.entries:
                    loaded[entry.name] = entry.load(sets)
                    stack.enter_context(loaded[entry.name].runner)
            rounds = [self._round(input_set, loaded, faults) for input_set in sets]
        described = [candidate.runner.describe() for candidate in loaded.values()]
        # Of the first package, which the report is about.
        kernels = described[0].kernels
        with self.progress.step("counting rows"):
            work = self._work(sets)
        notes = [note for *_, found in rounds for note in found]
        original = self.setting.original
        if original and self.candidates.is_of_another_checkpoint(original):
            root = self.candidates.first.root
            notes.insert(0, f"the original is of another checkpoint than {root} was made from")
        judged: list[GateResult] = []
        for measured, *_ in rounds:
            others = {row.contestant: row for row in measured}
            # Every package, not the baselines.
            packages = [row for row in measured if not row.is_baseline]
            judged += [gate.judge(row, others) for gate in gates for row in packages]
        return BenchReport(
            results=tuple(row for measured, *_ in rounds for row in measured),
            work=work,
            gates=tuple(judged),
            routing=tuple(overhead for _, routing, _ in rounds for overhead in routing),
            samples_by=batch_dim(self.candidates.first.manifest),
            threads=self.setting.threads,
            min_time_s=min_time,
            warmup_s=warmup,
            machine=Processor.this(kernels.instruction_set).describe(),
            runtime=", ".join(dict.fromkeys(description.where() for description in described)),
            kernels=kernels,
            notes=tuple(notes),
        )

    @property
    def _finder(self) -> FaultFinder:
        return FaultFinder(self.candidates, self.setting.original)

    def _round(
        self, input_set: InputSet, loaded: Mapping[str, LoadedCandidate], faults: Mapping[str, str]
    ) -> tuple[list[Measured], list[RoutingOverhead], list[str]]:
        """Measure all candidates on one set of inputs; return also costs of routing, and notes."""
        at = f"at {sizes_text(input_set.sizes)}"
        with self.progress.step(f"comparing outputs {at}"):
            # Every candidate runs once before it is timed: one that does not take the inputs is
            # refused here.
            outputs = {name: other.outputs(input_set) for name, other in loaded.items()}
            reference, compared = self._without_padding(input_set, outputs)
            (_, first), *others = loaded.items()
            agreements = {
                name: agreement(
                    compared[name],
                    reference,
                    # The less precise of the two decides how far they may be apart.
                    {*first.precisions, *other.precisions},
                    inputs=_words(input_set),
                )
                for name, other in others
            }
            if self.judged:
                # What recorded runs showed wins: they are of the original model.
                faults = {**self._finder.in_timed_run(input_set, compared, agreements), **faults}
        calls = {name: candidate.bound(input_set) for name, candidate in loaded.items()}
        with self.progress.step(f"timing {at}"):
            times = self.measure(calls)
        with self.progress.step(f"running in fresh processes {at}"):
            fresh = self._fresh_runs(input_set, loaded)
        baselines = [other.name for other in self.candidates.entries if other.is_baseline]
        found = [
            Measured(
                contestant=entry.name,
                is_baseline=entry.is_baseline,
                inputs=input_set.name,
                sizes=input_set.sizes,
                samples=num_samples(self.candidates.first.manifest, input_set.sizes),
                latency=Latency.of(times[entry.name]),
                fresh=fresh[entry.name],
                ratios={
                    other: ratio(times[entry.name].wall_ms, times[other].wall_ms)
                    for other in baselines
                    if other != entry.name
                },
                agreement=agreements.get(entry.name),
                fault=faults.get(entry.name),
            )
            for entry in self.candidates.entries
        ]
        # Packages come first among the candidates, and routing is fixed in the first of them.
        overheads = [
            self._routing(fixed_router, found[0], times)
            for fixed_router in self.candidates.fixed_routers
        ]
        notes = []
        nan = [f"'{name}'" for name, array in reference.items() if (array != array).any()]
        # Without gates nothing fails, but times of NaN have to be reported.
        if nan and not self.judged:
            notes.append(
                f"{', '.join(nan)} of {found[0].contestant} on {_words(input_set)} hold NaN: no"
                " gate would pass, and `moh-deploy verify` says more"
            )
        notes += [
            f"{row.contestant} is no measure: {row.fault}"
            for row in found
            if row.is_baseline and row.fault is not None
        ]
        return found, overheads, notes

    def _without_padding(
        self, input_set: InputSet, outputs: Mapping[str, Sequence[Array]]
    ) -> tuple[dict[str, Array], dict[str, Sequence[Array]]]:
        """Return what is compared, of the first package and of all candidates.

        What is computed for padding, as the package says it, is left out.

        Raises:
            ConfigError: The outputs of the first package are empty.
        """
        manifest = self.candidates.first.manifest
        first = next(iter(outputs.values()))
        # Sizes of 0 are legal inputs: the comparison would agree, on nothing.
        if not any(output.size for output in first):
            raise ConfigError(
                f"every output is empty on {_words(input_set)}: there is nothing to time.",
                hint="Give inputs that hold samples, or sizes above 0.",
            )
        reference = dict(zip([spec.name for spec in manifest.outputs], first, strict=True))
        run = VectorSet(input_set.sizes, input_set.inputs, reference, (), ())
        view = samples.own_view(manifest, run, input_set.name)

        def compared(arrays: Sequence[Array]) -> Sequence[Array]:
            # By order: a baseline calls its outputs something else, and may have others.
            if len(arrays) != len(reference):
                return arrays
            return list(view.select(dict(zip(reference, arrays, strict=True))).values())

        selected = {name: compared(arrays) for name, arrays in outputs.items()}
        return view.select(reference), selected

    def _fresh_runs(
        self, input_set: InputSet, loaded: Mapping[str, LoadedCandidate]
    ) -> dict[str, FreshRun]:
        inputs = self.setting.scratch / "inputs.npz"
        write_npz(inputs, input_set.inputs)
        return {
            # What exists in this process only, such as a model with routing fed, has no run of its
            # own.
            name: FreshRun()
            if candidate.alone is None
            else self.measure_fresh(FreshTask(*candidate.alone, inputs))
            for name, candidate in loaded.items()
        }

    def _routing(
        self, fixed_routers: FixedRouters, first: Measured, times: Mapping[str, Timing]
    ) -> RoutingOverhead:
        where = (first.contestant, fixed_routers.layer, first.inputs, first.sizes)
        if fixed_routers.why_not is not None:
            return RoutingOverhead(*where, None, None, None, fixed_routers.why_not)
        dynamic, fixed = times[first.contestant], times[fixed_routers.name]
        # Round by round, as both take turns: the cost of routing is often smaller than what the
        # machine drifts by.
        wall = difference(dynamic.wall_ms, fixed.wall_ms)
        cpu = difference(dynamic.cpu_ms, fixed.cpu_ms)
        return RoutingOverhead(*where, wall, cpu, wall.value / first.latency.p50_ms, None)

    def _work(self, sets: Sequence[InputSet]) -> tuple[PackageWork, ...]:
        # Counted in the very way in which each was timed.
        variants = {entry.name: entry.variant for entry in self.candidates.entries}
        return tuple(
            PackageWork(name, inputs.name, inputs.sizes, layers)
            for name, package in self.candidates.packages.items()
            for inputs, layers in zip(sets, layer_work(package, sets, variants[name]), strict=True)
        )


def _words(input_set: InputSet) -> str:
    return f"{input_set.name} ({sizes_text(input_set.sizes)})"
