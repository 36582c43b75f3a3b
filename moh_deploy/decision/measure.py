"""Measure all arms of a plan: the same inputs, in the same order, on this machine, in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.decision.arm import Arm, OpenedArm, open_arms
from moh_deploy.decision.arm_facts import arm_facts
from moh_deploy.decision.decide import ArmEvidence, SizedTimes
from moh_deploy.decision.fixed_routing_arm import FixedRoutingModel, why_not_fed
from moh_deploy.decision.measured import ArmFacts, MeasuredArms, SizedRun
from moh_deploy.decision.plan import Plan
from moh_deploy.decision.quality_promise import SampleScores
from moh_deploy.decision.score_arms import ScoreArms, score_arms
from moh_deploy.decision.try_out import first_inputs, try_out
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.fresh_run import MeasureFresh
from moh_deploy.perf.bench.latency import MeasureRuns, Timing
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.system.npz import write_npz
from moh_deploy.system.progress import Progress
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.accuracy.metrics import Metric
from moh_deploy.validate.input_sets import InputSet, num_samples


@dataclass(frozen=True)
class PlannedRun:
    """One measurement of all arms.

    Attributes:
        plan: What is asked for.
        arms: Found, the reference among them.
        base: The package whose names of inputs and outputs are used.
        batches: The labelled samples, cut into runs; empty without labels.
        metrics: What scores them.
        timed: Inputs to time on; empty if no latency is asked for.
        measure: What times calls that take turns.
        measure_fresh: What runs a model in a process of its own.
        scratch: A directory for files of this measurement.
        progress: What to report steps to.
        score: What scores the labelled samples with every arm.
    """

    plan: Plan
    arms: Sequence[Arm]
    base: OnnxPackage
    batches: Sequence[LabelledRun]
    metrics: Sequence[Metric]
    timed: Sequence[InputSet]
    measure: MeasureRuns
    measure_fresh: MeasureFresh
    scratch: Path
    progress: Progress
    score: ScoreArms = score_arms

    def measured(self) -> MeasuredArms:
        """Run everything.

        Raises:
            MoHDeployError: An arm cannot be loaded or run; that shows before anything is timed.
        """
        with ExitStack() as stack:
            with self.progress.step("loading the arms"):
                # All stay open together, as they take turns.
                arms = open_arms(self.arms, self.base.manifest, stack)
                routerless = self._without_routers(stack)
            with self.progress.step("running each arm once"):
                try_out(arms, first_inputs(self.timed, self.batches))
            scores: list[SampleScores] = []
            if self.batches:
                ignore = self.plan.ignore_label
                scores = self.score(
                    arms, self.batches, self.metrics, ignore=ignore, progress=self.progress
                )
            runs = [self._timed(input_set, arms, routerless) for input_set in self.timed]
            described = {name: arm.runner.describe() for name, arm in arms.items()}
        times = [
            SizedTimes(run.sizes, run.samples, {k: v.wall_ms for k, v in run.timings.items()})
            for run in runs
        ]
        return MeasuredArms(ArmEvidence(scores, times), runs, dict(self._facts()), described)

    def _without_routers(self, stack: ExitStack) -> dict[str, OpenedArm]:
        """Open arms once more without their routers, where these choose and that can be done."""
        if not self.plan.router_overhead or not self.timed:
            return {}
        asked = [
            Arm(arm.name, arm.kind, FixedRoutingModel(arm.package), arm.variant)
            for arm in self.arms
            if arm.package is not None and arm.chooses and why_not_measured(arm) is None
        ]
        return open_arms(asked, self.base.manifest, stack)

    def _timed(
        self,
        input_set: InputSet,
        arms: Mapping[str, OpenedArm],
        routerless: Mapping[str, OpenedArm],
    ) -> SizedRun:
        with self.progress.step(f"timing at {sizes_text(input_set.sizes)}"):
            calls = {(name, False): arm.bound(input_set.inputs) for name, arm in arms.items()}
            calls |= {(name, True): arm.bound(input_set.inputs) for name, arm in routerless.items()}
            # Names of arms are the user's: two of one name would be one call.
            numbered = {str(index): call for index, call in enumerate(calls.values())}
            found = self.measure(numbered)
        timings: dict[bool, dict[str, Timing]] = {False: {}, True: {}}
        for (name, is_routerless), timing in zip(calls, found.values(), strict=True):
            timings[is_routerless][name] = timing
        samples = num_samples(self.base.manifest, input_set.sizes)
        return SizedRun(input_set.name, input_set.sizes, samples, timings[False], timings[True])

    def _facts(self) -> list[tuple[str, ArmFacts]]:
        inputs = self.scratch / "inputs.npz"
        # Without latency the first labelled batch is what there is to run on.
        timed = self.timed[0] if self.timed else None
        arrays = timed.inputs if timed is not None else self.batches[0].batch.inputs
        write_npz(inputs, arrays)
        facts = []
        for arm in self.arms:
            with self.progress.step(f"measuring memory and routing of '{arm.name}'"):
                found = arm_facts(
                    arm,
                    timed or InputSet("labelled", {}, dict(arrays), 1.0),
                    inputs,
                    self.batches,
                    threads=self.plan.threads,
                    edge_cases=self.plan.edge_cases,
                    measure_fresh=self.measure_fresh,
                    progress=self.progress,
                )
            facts.append((arm.name, found))
        return facts


def why_not_measured(arm: Arm) -> str | None:
    """Return why the time of an arm's routers cannot be measured; None if it can."""
    if arm.package is None or not arm.chooses:
        return "it has no routers that could be taken out"
    if not arm.package.vectors:
        return "its package holds no recorded run"
    return why_not_fed(arm.package)
