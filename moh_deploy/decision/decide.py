"""Decide each alternative by the plan: win, loss, or cannot tell.

An alternative wins if every promise is shown to be kept: then each may be tested at the whole
level, since a wrong win takes the worst of them to err. It loses if any promise is shown to be
broken: then the promises share the level. Alternatives share it by Holm, looks by spending; see
`levels`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moh_deploy.decision.latency_promise import latency_promise
from moh_deploy.decision.plan import Plan, PlanFile
from moh_deploy.decision.promise import Promise, SampleScores, normal_point, quality_promise
from moh_deploy.errors import ConfigError
from moh_deploy.perf.choices_text import sizes_text
from moh_deploy.perf.timing import TimeSamples
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import read_json
from moh_deploy.validate.accuracy.bootstrap import RESAMPLES

# Levels of tests: shared among several alternatives by Holm, and among several looks by spending.


def level_of_look(level: float, look: int, looks: int) -> float:
    """Return how much of a level one look may spend; all looks together spend the level.

    Little at first: who looks early and often has to see much. The sum holds however the data of
    the looks depend on each other, so no look has to have a certain amount of them.

    Args:
        level: One-sided, of all looks together.
        look: From 1.
        looks: How many the plan allows.

    Source: Lan & DeMets, Biometrika 70 (1983): the spending function in the manner of O'Brien and
    Fleming, a(t) = 2 - 2 Phi(z / sqrt(t)) with a(1) = level. Each look is tested at what it adds.
    """

    def spent(share: float) -> float:
        # 2 - 2 Phi(x) = erfc(x / sqrt(2)), which is no 0 where Phi(x) rounds to 1.
        return math.erfc(normal_point(level / 2) / math.sqrt(2 * share)) if share else 0.0

    return spent(look / looks) - spent((look - 1) / looks)


def shown_by_holm(p_values: Mapping[str, float], level: float) -> dict[str, bool]:
    """Return which claims are shown, so that any wrong one is among them at the level at most.

    Args:
        p_values: Name of a claim to the probability of such data were it not true.
        level: Of all claims together.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    shown = dict.fromkeys(p_values, False)
    # The smallest has to pass level / m, the next level / (m - 1), until one does not.
    for index, name in enumerate(sorted(p_values, key=lambda p_value: p_values[p_value])):
        if p_values[name] > level / (len(p_values) - index):
            break
        shown[name] = True
    return shown


ArmVerdict = Literal["win", "loss", "cannot tell"]


@dataclass(frozen=True)
class SizedTimes:
    """The times of all alternatives at one set of sizes, round by round."""

    sizes: Mapping[str, int]
    samples: int
    # Name of each alternative to its milliseconds, in the order of the rounds.
    wall_ms: Mapping[str, TimeSamples]


@dataclass(frozen=True)
class AlternativeEvidence:
    """The numbers that verdicts rest on."""

    scores: Sequence[SampleScores]
    times: Sequence[SizedTimes]


@dataclass(frozen=True)
class ArmDecision:
    """The verdict of one alternative."""

    name: str
    verdict: ArmVerdict  # of this look, or of an earlier one
    look: int  # in which look it was found
    promises: tuple[Promise, ...]
    p_win: float  # the probability of such data were a promise just not kept
    p_loss: float  # the same were all of them just kept
    would_tell: tuple[str, ...]  # how much more would tell, where it cannot be told


@dataclass(frozen=True)
class WouldDo:
    """An alternative without routers that does as well as every alternative with them."""

    name: str
    p_value: (
        float  # the probability of such data, were it worse or a routed alternative enough faster
    )
    beside: tuple[str, ...]


def decide_alternatives(
    plan: Plan,
    evidence: AlternativeEvidence,
    *,
    look: int = 1,
    earlier: Mapping[str, tuple[ArmVerdict, int]] | None = None,
) -> tuple[ArmDecision, ...]:
    """Judge every alternative but the reference.

    Args:
        plan: What was promised.
        evidence: What was measured.
        look: From 1 to the plan's.
        earlier: Verdicts of the looks before, and in which they were found: those that could be
            told stay.
    """
    level = level_of_look(plan.level, look, plan.looks)
    # More data are judged by the next look, which may spend more than this one.
    next_level = level_of_look(plan.level, min(look + 1, plan.looks), plan.looks)
    promises = {
        name: tuple(_promises_of(plan, evidence, name, plan.reference))
        for name in plan.arms
        if name != plan.reference
    }
    # All have to be kept: the one that is shown least decides.
    p_win = {name: max(promise.p_kept for promise in found) for name, found in promises.items()}
    # Any promise that is broken is a loss: Bonferroni over the promises of an alternative.
    p_loss = {
        name: min(1.0, len(found) * min(promise.p_broken for promise in found))
        for name, found in promises.items()
    }
    wins, losses = shown_by_holm(p_win, level), shown_by_holm(p_loss, level)

    decided = []
    for name, found in promises.items():
        verdict, found_in = (earlier or {}).get(name, ("cannot tell", look))
        hints: tuple[str, ...] = ()
        if verdict == "cannot tell":
            verdict = "win" if wins[name] else "loss" if losses[name] else "cannot tell"
            found_in = look
        if verdict == "cannot tell":
            # At the level of Holm's first step, which every alternative is sure to need at most.
            levels = (level / len(promises), next_level / len(promises))
            hints = tuple(_would_tell(found, *levels, is_last=look == plan.looks))
        decided.append(
            ArmDecision(name, verdict, found_in, found, p_win[name], p_loss[name], hints)
        )
    return tuple(decided)


def would_do(
    plan: Plan, evidence: AlternativeEvidence, routes: Mapping[str, bool], *, look: int = 1
) -> tuple[WouldDo, ...]:
    """Return the alternatives without routers that do as well as every alternative with them.

    Shown for each of those: it loses no more against the routed alternative than the plan allows,
    and the routed alternative is not as much faster than it as the plan asks for, at any of the
    sizes.

    Args:
        plan: What was promised.
        evidence: What was measured.
        routes: Name of each alternative that could be served to whether it has routers.
        look: From 1 to the plan's.
    """
    simple = [name for name, routed in routes.items() if not routed]
    routed = tuple(name for name, routed in routes.items() if routed)
    if not simple or not routed or not evidence.scores or not evidence.times:
        return ()
    level = level_of_look(plan.level, look, plan.looks)
    found = {}
    for name in simple:
        # Everything has to be shown, so the worst of it decides.
        worse = [
            promise.p_kept
            for other in routed
            for promise in _promises_of(plan, evidence, name, other)
            if promise.kind == "quality"
        ]
        faster = [
            promise.p_broken
            for other in routed
            for promise in _promises_of(plan, evidence, other, name)
            if promise.kind == "latency"
        ]
        found[name] = max(worse + faster)
    shown = shown_by_holm(found, level)
    return tuple(WouldDo(name, found[name], routed) for name in simple if shown[name])


def _promises_of(
    plan: Plan, evidence: AlternativeEvidence, alternative: str, reference: str
) -> Iterator[Promise]:
    for section, scores in zip(plan.quality, evidence.scores, strict=True):
        yield quality_promise(
            scores, alternative, reference, may_lose=section.may_lose, confidence=plan.confidence
        )
    if plan.latency is None:
        return
    for time in evidence.times:
        yield latency_promise(
            time.wall_ms[alternative],
            time.wall_ms[reference],
            quantile=plan.latency.quantile,
            at_least=plan.latency.at_least,
            confidence=plan.confidence,
            where=f", {sizes_text(time.sizes)}" if len(evidence.times) > 1 else "",
        )


def _would_tell(
    promises: Sequence[Promise], level: float, next_level: float, *, is_last: bool
) -> Iterator[str]:
    """Yield how many samples or rounds would tell each open promise at the next look, in words."""
    for promise in promises:
        # A loss is any promise that is broken, so each has to show it at its part of the level.
        if promise.p_kept <= level or len(promises) * promise.p_broken <= level:
            continue
        if promise.why_unknown is not None:
            yield f"{promise.text}: {promise.why_unknown}"
            continue
        own = next_level / len(promises) if promise.surplus < 0 else next_level
        if promise.kind == "quality" and own < 1 / (1 + RESAMPLES):
            where, then = "the next look", "a later look can tell"
            if is_last:
                where, then = "this look", "fewer alternatives or a lower confidence could be told"
            yield (
                f"{promise.text}: {where} may be wrong in {100 * own:.2g} % of cases, which"
                f" {RESAMPLES} draws cannot show; {then}"
            )
            continue
        needed = promise.enough(own)
        if needed is None:
            yield f"{promise.text}: too close for any number of {promise.unit} to tell"
        elif needed <= promise.count:
            yield f"{promise.text}: {promise.count} {promise.unit} should tell; run it again"
        else:
            yield (
                f"{promise.text}: some {needed} {promise.unit} would tell, there were"
                f" {promise.count}"
            )


# The report of the look before: which look this one is, and what was told already.

Told = Mapping[str, tuple[ArmVerdict, int]]
"""Name of an alternative to its verdict, and the look in which it was found."""


def read_earlier(path: Path | None, file: PlanFile) -> tuple[int, Told]:
    """Return the number of this look, and the verdicts of those before.

    Args:
        path: JSON of the look before; None for the first.
        file: The plan, which has to be the same; `seconds` may differ.

    Raises:
        ConfigError: It is no such report, it is of another plan, or the plan allows no more looks.
    """
    if path is None:
        return 1, {}
    try:
        content = read_json(path, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"earlier is {path}, which does not exist.") from None
    if (
        not isinstance(content, dict)
        or not {"plan_digest", "look", "arms"} <= content.keys()
        or not isinstance(content["arms"], list)
    ):
        raise ConfigError(f"earlier is {path}, which is no JSON report of `moh-deploy compare`.")
    # Earlier versions had `seconds` in the digest.
    whole = sha256_of_json(file.plan.model_dump(mode="json"))
    if content["plan_digest"] not in (file.plan.digest, whole):
        raise ConfigError(
            f"{path} is of another plan: sha256 {content['plan_digest']}, this one has"
            f" {file.plan.digest}.",
            hint="After a look at the data only `seconds` of a plan may change: begin anew.",
        )
    look, looks = content["look"], file.plan.looks
    if not isinstance(look, int) or look >= looks:
        raise ConfigError(
            f"{path} is look {look} of {looks}: the plan allows no other.",
            hint="More looks have to be planned before the first.",
        )
    told: dict[str, tuple[ArmVerdict, int]] = {}
    known = get_args(ArmVerdict)
    for alternative in content["arms"]:
        if isinstance(alternative, dict) and alternative.get("verdict") == "reference":
            told[str(alternative.get("name"))] = ("cannot tell", 1)
            continue
        if (
            not isinstance(alternative, dict)
            or "name" not in alternative
            or alternative.get("verdict") not in known
        ):
            raise ConfigError(
                f"{path}: an alternative has no name, or no verdict of {', '.join(known)}."
            )
        if not isinstance(alternative.get("look"), int):
            raise ConfigError(
                f"{path}: alternative '{alternative.get('name')}' does not say in which look."
            )
        told[str(alternative["name"])] = (alternative["verdict"], alternative["look"])
    return look + 1, told
