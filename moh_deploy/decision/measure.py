"""Measure all alternatives of a plan in turns: the same inputs in the same order, here."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from moh_deploy.decision.alternative import (
    Alternative,
    FixedRoutingModel,
    OpenedAlternative,
    named_errors,
    open_alternatives,
    shapes_of,
    why_not_fed,
)
from moh_deploy.decision.decide import AlternativeEvidence, SizedTimes
from moh_deploy.decision.measured import (
    AlternativeFacts,
    EdgeCases,
    MeasuredAlternatives,
    SizedRun,
    routing_bias,
)
from moh_deploy.decision.plan import Plan
from moh_deploy.decision.promise import SampleScores
from moh_deploy.decision.score_alternatives import BlockScorer
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.perf.bench.candidate import FreshTask, MeasureFresh, MeasureRuns
from moh_deploy.perf.bench.measured import layer_work
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.system.progress import Progress
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.accuracy.reading import LabelledData
from moh_deploy.validate.accuracy.task import Metric
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.edge_cases.source import Sides, Source, body_source, input_states
from moh_deploy.validate.edge_cases.suite import Suite
from moh_deploy.validate.reference.input_sets import InputSet, input_sets, num_samples, sized_inputs
from moh_deploy.validate.reference.samples import named_mask

_MOST_BATCHES = 8
_MOST_FAILURES = 5
NO_GATES = "gates of its heads cannot be read here"

# Run every alternative once before anything takes minutes: what cannot run is refused by its name.


def first_inputs(
    timed: Sequence[InputSet], batches: Sequence[LabelledRun]
) -> Sequence[Mapping[str, Array]]:
    """Return inputs of every kind that alternatives will be given."""
    # The last batch may be of fewer samples than the others.
    runs = (*batches[:1], *batches[1:][-1:])
    return [input_set.inputs for input_set in timed] + [run.batch.inputs for run in runs]


def try_alternatives(
    alternatives: Sequence[Alternative], base: Manifest, given: Iterable[Mapping[str, Array]]
) -> None:
    """Open alternatives, run each once on all inputs, and close them again.

    Raises:
        MoHDeployError: One cannot be opened or run, or returns something else than the first.
    """
    with ExitStack() as stack:
        try_out(open_alternatives(alternatives, base, stack), given)


def try_out(
    alternatives: Mapping[str, OpenedAlternative], given: Iterable[Mapping[str, Array]]
) -> None:
    """Run open alternatives once on all inputs.

    Raises:
        MoHDeployError: One cannot run them, or returns something else than the first.
    """
    for inputs in given:
        (first, expected), *others = (
            (name, shapes_of(alternative.outputs(inputs)))
            for name, alternative in alternatives.items()
        )
        for name, got in others:
            for output in got.keys() & expected.keys():
                if got[output] != expected[output]:
                    raise ConfigError(
                        f"alternative '{name}' returns output '{output}' of {list(got[output])},"
                        f" and alternative '{first}' of {list(expected[output])}: they do not do"
                        " the same."
                    )


@dataclass(frozen=True)
class PlannedRun:
    """One measurement of all alternatives."""

    plan: Plan
    alternatives: Sequence[Alternative]  # found, the reference among them
    base: OnnxPackage  # the package whose names of inputs and outputs are used
    batches: Sequence[LabelledRun]  # the labelled samples, cut into runs; empty without labels
    metrics: Sequence[Metric]
    timed: Sequence[InputSet]  # inputs to time on; empty if no latency is asked for
    measure: MeasureRuns  # what times calls that take turns
    measure_fresh: MeasureFresh  # what runs a model in a process of its own
    scratch: Path
    progress: Progress
    # What scores the labelled samples with every alternative.
    score: BlockScorer = field(default_factory=lambda: BlockScorer({}))

    def measured(self) -> MeasuredAlternatives:
        """Run every alternative of a plan.

        Raises:
            MoHDeployError: An alternative cannot be loaded or run; that shows before anything is
                timed.
        """
        with ExitStack() as stack:
            with self.progress.step("loading the alternatives"):
                # All stay open together, as they take turns.
                alternatives = open_alternatives(self.alternatives, self.base.manifest, stack)
                routerless = self._without_routers(stack)
            with self.progress.step("running each alternative once"):
                try_out(alternatives, first_inputs(self.timed, self.batches))
            scores: list[SampleScores] = []
            if self.batches:
                ignore = self.plan.ignore_label
                scores = self.score(
                    alternatives, self.batches, self.metrics, ignore=ignore, progress=self.progress
                )
            runs = [self._timed(input_set, alternatives, routerless) for input_set in self.timed]
            described = {
                name: alternative.runner.describe() for name, alternative in alternatives.items()
            }
        times = [
            SizedTimes(run.sizes, run.samples, {k: v.wall_ms for k, v in run.timings.items()})
            for run in runs
        ]
        # Without latency the first labelled batch is what there is to run on.
        arrays = self.timed[0].inputs if self.timed else self.batches[0].batch.inputs
        timed = self.timed[0] if self.timed else InputSet("labelled", {}, dict(arrays), 1.0)
        inputs = self.scratch / "inputs.npz"
        write_npz(inputs, arrays)
        facts = {}
        for alternative in self.alternatives:
            with self.progress.step(f"measuring memory and routing of '{alternative.name}'"):
                facts[alternative.name] = self._facts(alternative, timed, inputs)
        return MeasuredAlternatives(AlternativeEvidence(scores, times), runs, facts, described)

    def _without_routers(self, stack: ExitStack) -> dict[str, OpenedAlternative]:
        """Open alternatives once more without their routers, where these select heads."""
        if not self.plan.router_overhead or not self.timed:
            return {}
        asked = [
            Alternative(
                alternative.name,
                alternative.kind,
                FixedRoutingModel(alternative.package),
                alternative.variant,
            )
            for alternative in self.alternatives
            if alternative.package is not None
            and alternative.chooses
            and why_not_measured(alternative) is None
        ]
        return open_alternatives(asked, self.base.manifest, stack)

    def _timed(
        self,
        input_set: InputSet,
        alternatives: Mapping[str, OpenedAlternative],
        routerless: Mapping[str, OpenedAlternative],
    ) -> SizedRun:
        with self.progress.step(f"timing at {sizes_text(input_set.sizes)}"):
            opened = [*alternatives.values(), *routerless.values()]
            # Names of alternatives are the user's: two of one name would be one call.
            calls = {
                str(index): alternative.bound(input_set.inputs)
                for index, alternative in enumerate(opened)
            }
            found = list(self.measure(calls).values())
        timings = dict(zip(alternatives, found, strict=False))
        without = dict(zip(routerless, found[len(alternatives) :], strict=True))
        samples = num_samples(self.base.manifest, input_set.sizes)
        return SizedRun(input_set.name, input_set.sizes, samples, timings, without)

    def _facts(self, alternative: Alternative, timed: InputSet, inputs: Path) -> AlternativeFacts:
        """Measure memory, skipped work, bias of routing, and edge cases if they are asked for.

        Args:
            alternative: Not open: what is timed is over.
            timed: What it ran on.
            inputs: The same as an npz file.
        """
        missing: dict[str, str] = {}
        alone = (
            None
            if alternative.elsewhere is not None
            else alternative.model.alone(alternative.variant)
        )
        memory = None
        if alone is None:
            missing["memory"] = alternative.elsewhere or "it exists in this process only"
        else:
            memory = self.measure_fresh(FreshTask(*alone, inputs)).peak_memory_bytes
            if memory is None:
                missing["memory"] = "the system does not tell it"
        package = alternative.package
        if package is None or not package.manifest.layers:
            why = NO_GATES if package is None else "it has no MoH layer"
            missing |= {"skipped work": why, "routing": why}
            if self.plan.edge_cases:
                missing["edge cases"] = why
            return AlternativeFacts(memory_bytes=memory, not_measured=missing)
        with named_errors(alternative.name):
            variant = replace(alternative.variant, threads=self.plan.threads)
            (layers,) = layer_work(package, [timed], variant)
            dense = max(1, sum(layer.rows_dense for layer in layers))
            skipped = 1 - sum(layer.rows_computed for layer in layers) / dense
            # Of labelled samples, or else of what it was timed on.
            runs = [(run.batch.inputs, run.sample.valid) for run in self.batches[:_MOST_BATCHES]]
            counted = [(given, None if valid is None else valid.mask) for given, valid in runs]
            routing = routing_bias(package, alternative.variant, counted or [(timed.inputs, None)])
            asked = self.plan.edge_cases
            found = _edge_cases(alternative, package, self.progress) if asked else None
        return AlternativeFacts(memory, skipped, routing, found, missing)


def _edge_cases(alternative: Alternative, package: OnnxPackage, progress: Progress) -> EdgeCases:
    mask = named_mask(package.manifest, None)
    subject = Source(package, replace(alternative.variant, spins=False))
    sides = Sides(package, subject, body_source(package), BUILT_IN_POLICY, mask)
    results = Suite(sides, tuple(input_states(package, {}, mask))).run(progress)
    failed = [result for result in results if result.status == "failed"]
    said = tuple(f"{case.case}, {case.place}: {case.detail}" for case in failed[:_MOST_FAILURES])
    passed = sum(1 for result in results if result.status == "passed")
    return EdgeCases(passed, len(failed), said)


def why_not_measured(alternative: Alternative) -> str | None:
    """Return why the time of an alternative's routers cannot be measured; None if it can."""
    if alternative.package is None or not alternative.chooses:
        return "it has no routers that could be taken out"
    if not alternative.package.vectors:
        return "its package holds no recorded run"
    return why_not_fed(alternative.package)


# The inputs that all alternatives are timed on: real samples where there are enough of these sizes.


def timed_inputs(
    base: OnnxPackage, data: LabelledData | None, sizes: Sequence[Mapping[str, int]]
) -> list[InputSet]:
    """Return inputs of each of the sizes; without, of the example's.

    The first samples of the labelled ones are taken, as many as the sizes ask for: heads that they
    open are real. Where other dimensions are asked for than they have, inputs are recorded ones, or
    drawn from these.

    Raises:
        ConfigError: A dimension is unknown, or of a size that the model does not take; or there is
            nothing to draw from.
    """
    found = []
    for asked in sizes or [{}]:
        real = None if data is None else _real(base, data, asked)
        if real is None and not base.vectors:
            raise ConfigError(
                f"{base.root} holds no recorded inputs, and no samples are of these sizes: there is"
                " nothing to time on.",
                hint="Give the plan samples of these sizes, or export the package again.",
            )
        if real is None and asked:
            (real,) = sized_inputs(base, {name: [size] for name, size in asked.items()})
        found.append(real or input_sets(base, [], [])[0])
    return found


def _real(base: OnnxPackage, data: LabelledData, sizes: Mapping[str, int]) -> InputSet | None:
    """Return the first samples of the first file; None where they do not have these sizes."""
    samples, axis = data.datasets[0].samples, data.axis.size
    count = axis if isinstance(axis, int) else sizes.get(axis, base.manifest.dims.get(axis, 1))
    if count > len(samples):
        return None
    inputs = samples.taken(0, count, 0, samples.inputs)
    found = check_inputs(base.manifest.inputs, inputs)
    if any(found.get(name) != size for name, size in sizes.items()):
        return None
    names = [info.name for info in base.manifest.inputs]
    return InputSet(samples.name, found, {name: inputs[name] for name in names}, 1.0)
