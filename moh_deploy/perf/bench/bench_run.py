"""Load the candidates of a benchmark, let them take turns, and collect what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from moh_deploy.errors import ConfigError
from moh_deploy.package import VectorSet
from moh_deploy.perf.bench.candidate import (
    Candidate,
    FixedRouters,
    LoadedCandidate,
    RoutingOverhead,
)
from moh_deploy.perf.bench.candidates import BenchSetting, Candidates
from moh_deploy.perf.bench.faults import FaultFinder
from moh_deploy.perf.bench.gates import BenchGate, GateResult
from moh_deploy.perf.bench.latency import FreshRun, Latency, MeasureFresh, MeasureRuns, Timing
from moh_deploy.perf.bench.measured import Agreement, Measured, PackageWork, agreement, layer_work
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.environment import Processor
from moh_deploy.perf.timing import difference, ratio
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.system.progress import Progress
from moh_deploy.validate.reference.input_sets import InputSet, batch_dim, num_samples
from moh_deploy.validate.reference.samples import own_view


@dataclass(frozen=True)
class BenchRun:
    """Runs one benchmark: proves, times and reports its candidates.

    Attributes:
        candidates: What is measured.
        setting: How they are run.
        measure: What times candidates.
        measure_fresh: What runs one in a process of its own.
        progress: What to report steps to.
        judged: Something may fail, a gate or a baseline file: what is measured has to be right.
    """

    candidates: Candidates
    setting: BenchSetting
    measure: MeasureRuns
    measure_fresh: MeasureFresh
    progress: Progress
    judged: bool

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
        first = self.candidates.first.manifest
        faults = {}
        if self.judged:
            # Before anything is timed, and in sessions of its own, which are closed again: memory
            # and threads of these are in nobody's way later.
            with self.progress.step("comparing with the recorded runs"):
                faults = self._finder.in_recorded_runs()
        with ExitStack() as stack:
            with self.progress.step("loading the models"):
                # All stay open together, as they take turns.
                loaded = {
                    entry.name: _opened(entry, sets, stack) for entry in self.candidates.entries
                }
            rounds = [self._round(input_set, loaded, faults) for input_set in sets]
        results = [each.measured for each in rounds]
        described = [loaded_candidate.describe() for loaded_candidate in loaded.values()]
        # Of the first package, which the report is about.
        kernels = described[0].kernels
        with self.progress.step("counting rows"):
            work = self._work(sets)
        notes = [note for each in rounds for note in each.notes]
        original = self.setting.original
        if original and self.candidates.is_of_another_checkpoint(original):
            root = self.candidates.first.root
            notes.insert(0, f"the original is of another checkpoint than {root} was made from")
        return BenchReport(
            results=tuple(row for each in results for row in each),
            work=work,
            gates=tuple(gate for each in results for gate in _judged(gates, each)),
            routing=tuple(overhead for each in rounds for overhead in each.routing),
            samples_by=batch_dim(first),
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
    ) -> _Round:
        with self.progress.step(f"comparing outputs at {sizes_text(input_set.sizes)}"):
            # Every candidate runs once before it is timed: one that does not take the inputs is
            # refused here.
            outputs = {name: other.outputs(input_set) for name, other in loaded.items()}
            reference = self._reference(input_set, outputs)
            reference, compared = self._without_padding(input_set, reference, outputs)
            agreements = _agreements(input_set, loaded, reference, compared)
            if self.judged:
                # What recorded runs showed wins: they are of the original model.
                faults = {**self._finder.in_timed_run(input_set, compared, agreements), **faults}
        calls = {name: candidate.bound(input_set) for name, candidate in loaded.items()}
        with self.progress.step(f"timing at {sizes_text(input_set.sizes)}"):
            times = self.measure(calls)
        with self.progress.step(f"running in fresh processes at {sizes_text(input_set.sizes)}"):
            fresh = self._fresh_runs(input_set, loaded)
        baselines = [other.name for other in self.candidates.entries if other.is_baseline]
        samples = num_samples(self.candidates.first.manifest, input_set.sizes)

        def measured(entry: Candidate) -> Measured:
            name = entry.name
            return Measured(
                contestant=name,
                is_baseline=entry.is_baseline,
                inputs=input_set.name,
                sizes=input_set.sizes,
                samples=samples,
                latency=Latency.of(times[name]),
                fresh=fresh[name],
                ratios={
                    other: ratio(times[name].wall_ms, times[other].wall_ms)
                    for other in baselines
                    if other != name
                },
                agreement=agreements.get(name),
                fault=faults.get(name),
            )

        found = [measured(entry) for entry in self.candidates.entries]
        # Packages come first among the candidates, and routing is fixed in the first of them.
        overheads = [
            self._routing(fixed_router, found[0], times)
            for fixed_router in self.candidates.fixed_routers
        ]
        # Without gates nothing fails, but nobody should be given times of NaN without a word.
        nan_notes = () if self.judged else _nan_notes(input_set, found[0].contestant, reference)
        notes = (*nan_notes, *_no_measure_notes(found))
        return _Round(found, overheads, notes)

    def _reference(
        self, input_set: InputSet, outputs: Mapping[str, Sequence[Array]]
    ) -> dict[str, Array]:
        """Return the outputs of the first package.

        Raises:
            ConfigError: They are empty.
        """
        names = [spec.name for spec in self.candidates.first.manifest.outputs]
        first = next(iter(outputs.values()))
        # Sizes of 0 are legal inputs: the comparison would agree, on nothing.
        if not any(output.size for output in first):
            raise ConfigError(
                f"every output is empty on {_words(input_set)}: there is nothing to time.",
                hint="Give inputs that hold samples, or sizes above 0.",
            )
        return dict(zip(names, first, strict=True))

    def _without_padding(
        self,
        input_set: InputSet,
        reference: Mapping[str, Array],
        outputs: Mapping[str, Sequence[Array]],
    ) -> tuple[dict[str, Array], dict[str, Sequence[Array]]]:
        """Return what is compared: not what is computed for padding, as the package says it."""
        run = VectorSet(input_set.sizes, input_set.inputs, dict(reference), (), ())
        view = own_view(self.candidates.first.manifest, run, input_set.name)

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
        tasks = {name: candidate.fresh_task(inputs) for name, candidate in loaded.items()}
        return {
            # What exists in this process only, such as a model with routing fed, has no run of its
            # own.
            name: FreshRun() if task is None else self.measure_fresh(task)
            for name, task in tasks.items()
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


def _opened(candidate: Candidate, sets: Sequence[InputSet], stack: ExitStack) -> LoadedCandidate:
    loaded = candidate.load(sets)
    stack.enter_context(loaded.runner)
    return loaded


def _agreements(
    input_set: InputSet,
    loaded: Mapping[str, LoadedCandidate],
    reference: Mapping[str, Array],
    outputs: Mapping[str, Sequence[Array]],
) -> dict[str, Agreement]:
    (_, first), *others = loaded.items()
    return {
        name: agreement(
            outputs[name],
            reference,
            # The less precise of the two decides how far they may be apart.
            {*first.precisions, *other.precisions},
            inputs=_words(input_set),
        )
        for name, other in others
    }


def _nan_notes(input_set: InputSet, name: str, outputs: Mapping[str, Array]) -> Iterator[str]:
    found = [f"'{output}'" for output, array in outputs.items() if (array != array).any()]
    if found:
        yield (
            f"{', '.join(found)} of {name} on {_words(input_set)} hold NaN: no gate would pass, and"
            " `moh-deploy verify` says more"
        )


def _no_measure_notes(found: Sequence[Measured]) -> Iterator[str]:
    for row in found:
        if row.is_baseline and row.fault is not None:
            yield f"{row.contestant} is no measure: {row.fault}"


def _words(input_set: InputSet) -> str:
    return f"{input_set.name} ({sizes_text(input_set.sizes)})"


@dataclass(frozen=True)
class _Round:
    """The measurements of all candidates on one set of inputs."""

    measured: list[Measured]
    routing: list[RoutingOverhead]
    notes: tuple[str, ...]


def _judged(gates: Sequence[BenchGate], measured: Sequence[Measured]) -> list[GateResult]:
    """Judge every package, not the baselines, on one set of inputs."""
    by_name = {row.contestant: row for row in measured}
    return [gate.judge(row, by_name) for gate in gates for row in measured if not row.is_baseline]
