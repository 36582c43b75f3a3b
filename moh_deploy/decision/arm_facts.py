"""Measure what is worth knowing of an arm besides quality and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from moh_deploy.decision.arm import Arm, named_errors
from moh_deploy.decision.measured import ArmFacts, EdgeCases
from moh_deploy.decision.routing_bias import routing_bias
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.fresh_run import FreshTask, MeasureFresh
from moh_deploy.perf.bench.layer_work import layer_work
from moh_deploy.runtime.base import Variant
from moh_deploy.system.progress import Progress
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.edge_cases.input_states import input_states
from moh_deploy.validate.edge_cases.source import Sides, Source, body_source
from moh_deploy.validate.edge_cases.suite import Suite
from moh_deploy.validate.input_sets import InputSet
from moh_deploy.validate.policy import BUILT_IN_POLICY
from moh_deploy.validate.samples import named_mask

_MOST_BATCHES = 8
_MOST_FAILURES = 5
NO_GATES = "gates of its heads cannot be read here"


def arm_facts(
    arm: Arm,
    timed: InputSet,
    inputs: Path,
    batches: Sequence[LabelledRun],
    *,
    threads: int | None,
    edge_cases: bool,
    measure_fresh: MeasureFresh,
    progress: Progress,
) -> ArmFacts:
    """Measure memory, skipped work, bias of routing, and edge cases if they are asked for.

    Args:
        arm: Not open: what is timed is over.
        timed: What it ran on.
        inputs: The same as an npz file.
        batches: Labelled samples, whose routing is counted; without, that of `timed` is.
        threads: Threads within an operator.
        edge_cases: They are asked for.
        measure_fresh: What runs a model in a process of its own.
        progress: What to report steps to.

    Raises:
        MoHDeployError: The arm cannot be loaded once more.
    """
    missing: dict[str, str] = {}
    memory = _memory(arm, inputs, measure_fresh, missing)
    package = arm.package
    if package is None or not package.manifest.layers:
        why = NO_GATES if package is None else "it has no MoH layer"
        missing |= {"skipped work": why, "routing": why}
        if edge_cases:
            missing["edge cases"] = why
        return ArmFacts(memory_bytes=memory, not_measured=missing)
    with named_errors(arm.name):
        skipped = _skipped(package, timed, replace(arm.variant, threads=threads))
        runs = [(batch.batch.inputs, batch.sample.valid) for batch in batches[:_MOST_BATCHES]]
        counted = [(given, None if valid is None else valid.mask) for given, valid in runs]
        routing = routing_bias(package, arm.variant, counted or [(timed.inputs, None)])
        found = _edge_cases(arm, package, progress) if edge_cases else None
    return ArmFacts(memory, skipped, routing, found, missing)


def _memory(
    arm: Arm, inputs: Path, measure_fresh: MeasureFresh, missing: dict[str, str]
) -> int | None:
    if arm.elsewhere is not None:
        missing["memory"] = arm.elsewhere
        return None
    alone = arm.model.alone(arm.variant)
    if alone is None:
        missing["memory"] = "it exists in this process only"
        return None
    found = measure_fresh(FreshTask(*alone, inputs)).peak_memory_bytes
    if found is None:
        missing["memory"] = "the system does not tell it"
    return found


def _skipped(package: OnnxPackage, timed: InputSet, variant: Variant) -> float:
    (layers,) = layer_work(package, [timed], variant)
    dense = sum(layer.rows_dense for layer in layers)
    return 1 - sum(layer.rows_computed for layer in layers) / max(1, dense)


def _edge_cases(arm: Arm, package: OnnxPackage, progress: Progress) -> EdgeCases:
    mask = named_mask(package.manifest, None)
    subject = Source(package, replace(arm.variant, spins=False))
    sides = Sides(package, subject, body_source(package), BUILT_IN_POLICY, mask)
    results = Suite(sides, tuple(input_states(package, {}, mask))).run(progress)
    failed = [result for result in results if result.status == "failed"]
    said = tuple(f"{case.case}, {case.place}: {case.detail}" for case in failed[:_MOST_FAILURES])
    passed = sum(1 for result in results if result.status == "passed")
    return EdgeCases(passed, len(failed), said)
