"""Make the report of what was measured and decided."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np

from moh_deploy.decision import decide
from moh_deploy.decision.alternative import Alternative
from moh_deploy.decision.latency_promise import MOST_MEAN_OVER_MEDIAN, block_means, log_quantile
from moh_deploy.decision.measure import why_not_measured
from moh_deploy.decision.measured import (
    AlternativeReport,
    DataFile,
    LatencyFigure,
    MeasuredAlternatives,
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
    alternatives: Sequence[Alternative],
    measured: MeasuredAlternatives,
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
    decided = decide.decide_alternatives(plan, measured.evidence, look=look, earlier=earlier)
    decisions = {
        alternative_decision.name: alternative_decision for alternative_decision in decided
    }
    # The reference first, then in the plan's order.
    ordered = sorted(alternatives, key=lambda alternative: alternative.name != plan.reference)
    chooses = {
        alternative.name: alternative.chooses
        for alternative in ordered
        if alternative.chooses is not None
    }
    reports = tuple(
        _alternative(plan, alternative, measured, decisions.get(alternative.name))
        for alternative in ordered
    )
    found = decide.would_do(plan, measured.evidence, chooses, look=look)
    verdicts = {name: decision.verdict for name, decision in decisions.items()}
    if chooses.get(plan.reference) is not True:
        # A simple alternative that is worse than a simple reference is not worth taking.
        found = tuple(do for do in found if verdicts.get(do.name) != "loss")
    # The one to name first: an alternative that won, and none that lost.
    ranks = {"win": 0, "loss": 2}
    quantile = None if plan.latency is None else plan.latency.quantile
    # Of whichever alternative has kernels: an original or a server lacks them here.
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


def _pairs(
    alternatives: Sequence[Alternative], chooses: Mapping[str, bool]
) -> Iterator[tuple[str, str]]:
    """Yield pairs of rivals: all against the reference, and routed against unrouted ones."""
    reference, *others = (
        alternative.name for alternative in alternatives if not alternative.is_bound
    )
    for rival in (reference, *others):
        for name in others:
            routed = chooses.get(name) is True and chooses.get(rival) is not True
            if name != rival and (rival == reference or routed):
                yield name, rival


def _alternative(
    plan: Plan,
    alternative: Alternative,
    measured: MeasuredAlternatives,
    decision: decide.ArmDecision | None,
) -> AlternativeReport:
    facts, name = measured.facts[alternative.name], alternative.name
    latency = tuple(_latency(plan, alternative, run) for run in measured.runs)
    # What is missing of times is known only now.
    missing = dict(facts.not_measured)
    if latency and alternative.elsewhere is not None:
        missing["CPU time"] = alternative.elsewhere
    if latency and latency[0].router_share is None:
        why = (
            why_not_measured(alternative)
            if plan.router_overhead
            else "the plan does not ask for it"
        )
        missing["router overhead"] = why or "it was not run without them"
    quality = []
    for scores in measured.evidence.scores:
        ends = scores.interval(name, plan.confidence) or (None, None)
        metric, samples = scores.metric, len(scores.weights)
        figure = QualityFigure(metric.name, metric.better, samples, scores.value(name), *ends)
        quality.append(figure)
    return AlternativeReport(
        name=name,
        kind=alternative.kind,
        dense=alternative.dense,
        is_bound=alternative.is_bound,
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


def _latency(plan: Plan, alternative: Alternative, run: SizedRun) -> LatencyFigure:
    timing, without = run.timings[alternative.name], run.without_routers.get(alternative.name)
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
        cpu_ms=fmean(timing.cpu_ms) if alternative.elsewhere is None else None,
        router_share=router_share,
        block_means_ms=block_means(timing.wall_ms),
    )


def _notes(
    plan: Plan, measured: MeasuredAlternatives, alternatives: Sequence[AlternativeReport]
) -> Iterator[str]:
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
        f"'{alternative.name}' at {sizes_text(latency.sizes)}": fmean(latency.block_means_ms)
        / latency.p50_ms
        for alternative in alternatives
        for latency in alternative.latency
        if not alternative.is_bound
    }
    disturbed = [where for where, times in above.items() if times > MOST_MEAN_OVER_MEDIAN]
    if disturbed:
        yield (
            f"Other work disturbed {shortened(disturbed)}: the mean time is up to"
            f" {max(above.values()):.3g} times the median. `moh-deploy cost` does not price them."
        )
