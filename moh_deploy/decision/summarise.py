"""Make the report of what was measured and decided."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np

from moh_deploy.decision import decide
from moh_deploy.decision.arm import Arm
from moh_deploy.decision.latency_promise import MOST_MEAN_OVER_MEDIAN, block_means, log_quantile
from moh_deploy.decision.measure import why_not_measured
from moh_deploy.decision.measured import (
    ArmReport,
    DataFile,
    LatencyFigure,
    MeasuredArms,
    QualityFigure,
    SizedRun,
)
from moh_deploy.decision.plan import Plan
from moh_deploy.decision.report import DecisionReport
from moh_deploy.decision.size_break_even import size_break_evens
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.environment import Processor
from moh_deploy.perf.timing import difference
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.suggest import shortened
from moh_deploy.validate.reference.input_sets import RANDOM


def report_of(
    plan: Plan,
    arms: Sequence[Arm],
    measured: MeasuredArms,
    *,
    look: int,
    earlier: Mapping[str, tuple[decide.ArmVerdict, int]],
    data: tuple[DataFile, ...],
) -> DecisionReport:
    """Decide by the plan, and say all of it.

    Args:
        look: From 1.
        earlier: Verdicts of earlier looks, and in which they were found.
        data: The files of samples and labels.
    """
    decided = decide.decide_arms(plan, measured.evidence, look=look, earlier=earlier)
    decisions = {arm_decision.name: arm_decision for arm_decision in decided}
    # The reference first, then in the plan's order.
    ordered = sorted(arms, key=lambda arm: arm.name != plan.reference)
    chooses = {arm.name: arm.chooses for arm in ordered if arm.chooses is not None}
    reports = tuple(_arm(plan, arm, measured, decisions.get(arm.name)) for arm in ordered)
    found = decide.would_do(plan, measured.evidence, chooses, look=look)
    verdicts = {name: decision.verdict for name, decision in decisions.items()}
    if chooses.get(plan.reference) is not True:
        # A simple arm that is worse than a simple reference is not worth taking.
        found = tuple(do for do in found if verdicts.get(do.name) != "loss")
    # The one to name first: an arm that won, and none that lost.
    ranks = {"win": 0, "loss": 2}
    quantile = None if plan.latency is None else plan.latency.quantile
    # Of whichever arm has kernels: an original or a server lacks them here.
    sets = (description.kernels.instruction_set for description in measured.described.values())
    machine = Processor.this(next((name for name in sets if name is not None), None)).describe()
    return DecisionReport(
        goal=plan.goal,
        plan_digest=plan.digest,
        plan=to_json_text(plan.model_dump(mode="json")),
        reference=plan.reference,
        look=look,
        looks=plan.looks,
        confidence=plan.confidence,
        level=decide.level_of_look(plan.level, look, plan.looks),
        quantile=quantile,
        machine=machine,
        data=data,
        arms=reports,
        would_do=tuple(sorted(found, key=lambda do: ranks.get(verdicts.get(do.name, ""), 1))),
        break_even=size_break_evens(
            measured.evidence.times,
            list(_pairs(ordered, chooses)),
            quantile=0.5 if quantile is None else quantile,
            confidence=plan.confidence,
        ),
        notes=tuple(_notes(plan, measured, reports)),
        kernels=measured.described[plan.reference].kernels,
    )


def _pairs(arms: Sequence[Arm], chooses: Mapping[str, bool]) -> Iterator[tuple[str, str]]:
    """Yield arms and their rivals: all against the reference, and routed against unrouted ones."""
    reference, *others = (arm.name for arm in arms if not arm.is_bound)
    for rival in (reference, *others):
        for name in others:
            routed = chooses.get(name) is True and chooses.get(rival) is not True
            if name != rival and (rival == reference or routed):
                yield name, rival


def _arm(
    plan: Plan,
    arm: Arm,
    measured: MeasuredArms,
    decision: decide.ArmDecision | None,
) -> ArmReport:
    facts, name = measured.facts[arm.name], arm.name
    latency = tuple(_latency(plan, arm, run) for run in measured.runs)
    # What is missing of times is known only now.
    missing = dict(facts.not_measured)
    if latency and arm.elsewhere is not None:
        missing["CPU time"] = arm.elsewhere
    if latency and latency[0].router_share is None:
        why = why_not_measured(arm) if plan.router_overhead else "the plan does not ask for it"
        missing["router overhead"] = why or "it was not run without them"
    quality = []
    for scores in measured.evidence.scores:
        ends = scores.interval(name, plan.confidence) or (None, None)
        metric, samples = scores.metric, len(scores.weights)
        figure = QualityFigure(metric.name, metric.better, samples, scores.value(name), *ends)
        quality.append(figure)
    return ArmReport(
        name=name,
        kind=arm.kind,
        dense=arm.dense,
        is_bound=arm.is_bound,
        runtime=measured.described[name].where(),
        verdict="reference" if decision is None else decision.verdict,
        look=None if decision is None else decision.look,
        quality=tuple(quality),
        latency=latency,
        memory_mib=None if facts.memory_bytes is None else facts.memory_bytes / 2**20,
        cpu_ms=latency[0].cpu_ms if latency else None,
        skipped_share=facts.skipped_share,
        routing=facts.routing,
        edge_cases=facts.edge_cases,
        promises=() if decision is None else decision.promises,
        p_win=None if decision is None else decision.p_win,
        p_loss=None if decision is None else decision.p_loss,
        would_tell=() if decision is None else decision.would_tell,
        not_measured=missing,
    )


def _latency(plan: Plan, arm: Arm, run: SizedRun) -> LatencyFigure:
    timing, without = run.timings[arm.name], run.without_routers.get(arm.name)
    quantile = 0.5 if plan.latency is None else plan.latency.quantile
    found = log_quantile(timing.wall_ms, 0.5)
    low, high = (None, None) if found is None else map(math.exp, found.interval(plan.confidence))
    median = float(np.median(timing.wall_ms))
    # The same mean of blocks that the interval is of, which the median of all is close to.
    p50 = median if found is None else math.exp(found.mean)
    router_share = None
    if without is not None:
        # Round by round: routing is often less than what the machine drifts by.
        router_share = difference(timing.wall_ms, without.wall_ms).value / median
    return LatencyFigure(
        sizes=dict(run.sizes),
        inputs=run.inputs,
        samples=run.samples,
        rounds=len(timing.wall_ms),
        p50_ms=p50,
        p50_low_ms=low,
        p50_high_ms=high,
        quantile_ms=float(np.quantile(timing.wall_ms, quantile, method="inverted_cdf")),
        throughput_per_s=1e3 * run.samples / max(p50, 1e-9),
        cpu_ms=fmean(timing.cpu_ms) if arm.elsewhere is None else None,
        router_share=router_share,
        block_means_ms=block_means(timing.wall_ms),
    )


def _notes(plan: Plan, measured: MeasuredArms, arms: Sequence[ArmReport]) -> Iterator[str]:
    if not plan.quality:
        yield "The plan asks for no quality: verdicts are of time alone."
    if plan.latency is None:
        yield "The plan asks for no latency: verdicts are of quality alone."
    if any(run.inputs == RANDOM for run in measured.runs):
        yield (
            "Some times are of random inputs, each element one of the recorded input's: heads that"
            " they open are not those of real ones."
        )
    above = {
        f"'{arm.name}' at {sizes_text(latency.sizes)}": fmean(latency.block_means_ms)
        / latency.p50_ms
        for arm in arms
        for latency in arm.latency
        if not arm.is_bound
    }
    disturbed = [where for where, times in above.items() if times > MOST_MEAN_OVER_MEDIAN]
    if disturbed:
        yield (
            f"Other work disturbed {shortened(disturbed)}: the mean time is up to"
            f" {max(above.values()):.3g} times the median. `moh-deploy cost` does not price them."
        )
