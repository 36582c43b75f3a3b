"""The policy of a guard: a YAML file of the ladder's rungs, and of what moves serving along it.

docs/production.md describes it, `examples/serving/policy.yaml` is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moh_deploy.config.checked_yaml import checked, read_mapping
from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.breaker import BreakerLimits
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.suggest import shortened

RungKind = Literal["kernels", "functions", "dense", "package"]
OpenedAt = Literal["start", "first use"]

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    # Strict: the text '4' is no number. Unknown keys are mostly misspelt ones.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class MeasuredLoss(_Section):
    """The measured loss of a rung that changes answers, and the report that says so.

    Attributes:
        report: JSON that `moh-deploy verify FALLBACK --against PACKAGE --json` wrote; relative to
            the policy.
        metric: The metric of that report that is meant, such as `top-1`; None where the report says
            that all is equal.
        loss: By how much that metric is worse on this rung; 0 where it is not.
    """

    report: Annotated[Path, Field(strict=False)]
    metric: str | None = None
    loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class RungSection(_Section):
    """A rung of `rungs:`.

    Attributes:
        kind: `kernels`, `functions` (function bodies of the same file), `dense` (the package with
            all its layers dense) or `package` (another one).
        name: What logs and metrics call it; by its kind where it is not given.
        path: The other package; relative to the policy.
        measured_loss: Needed by a rung that changes answers, and by no other.
        p99_ms: What 99 of 100 of its runs may take, in milliseconds; None for no limit.
        opened: At the start of the server, or when it is first needed.
    """

    kind: RungKind
    name: Annotated[str, Field(min_length=1)] = ""
    path: Annotated[Path, Field(strict=False)] | None = None
    measured_loss: MeasuredLoss | None = None
    p99_ms: _Seconds | None = None
    opened: OpenedAt = "start"

    @property
    def called(self) -> str:
        """Its name, or else its kind."""
        return self.name or self.kind

    @property
    def same_answers(self) -> bool:
        """Whether it computes what the package does, but for rounding."""
        return self.kind != "package"


class FaultSection(_Section):
    """`faults:` how many wrong answers within how many seconds open a rung."""

    count: _Count = 1
    window_s: _Seconds = 60.0


class LatencySection(_Section):
    """`latency:` over which runs the 99th percentile is taken.

    Attributes:
        window_s: The runs of so many seconds.
        min_samples: Fewer say nothing.
        recover_share: A run that is to bring a rung back takes at most this share of its limit.
    """

    window_s: _Seconds = 60.0
    min_samples: _Count = 200
    recover_share: Annotated[float, Field(gt=0, le=1)] = 0.8


class CoolDownSection(_Section):
    """`cool_down:` how long an open rung is left alone; see `BreakerLimits`."""

    first_s: _Seconds = 30.0
    back_off: Annotated[float, Field(ge=1, le=100)] = 2.0
    longest_s: _Seconds = 600.0
    stable_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0


class DriftSection(_Section):
    """`drift:` which rung serves while an alarm of `moh-deploy watch` holds."""

    rung: str


_USUAL_RUNGS = (RungSection(kind="kernels"), RungSection(kind="functions"))


class GuardPolicy(_Section):
    """The content of a policy.

    Attributes:
        rungs: The ladder, the fastest first; without, kernels, then function bodies.
        faults, latency, cool_down: See their sections.
        probes: So many right answers in a row bring a rung back.
        spot_checks: The share of answers that are computed once more by the next rung that is
            proven to give the same, after they were sent, and compared: what finds answers that are
            wrong and finite. Without such a rung none is.
        drift: None: an alarm is logged, and changes nothing.
    """

    rungs: Annotated[tuple[RungSection, ...], Field(strict=False, min_length=1)] = _USUAL_RUNGS
    faults: FaultSection = FaultSection()
    latency: LatencySection = LatencySection()
    cool_down: CoolDownSection = CoolDownSection()
    probes: _Count = 5
    spot_checks: _Share = 0.01
    drift: DriftSection | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> GuardPolicy:
        problems = [*_rung_problems(self.rungs), *_other_problems(self)]
        if problems:
            # All at once: a file is not to be mended one run at a time.
            raise ValueError("\n".join(problems))
        return self

    def limits(self, rung: RungSection) -> BreakerLimits:
        """Return what opens and closes the breaker of a rung."""
        return BreakerLimits(
            faults=self.faults.count,
            window_s=self.faults.window_s,
            p99_ms=rung.p99_ms,
            latency_window_s=self.latency.window_s,
            min_samples=self.latency.min_samples,
            recover_share=self.latency.recover_share,
            cool_down_s=self.cool_down.first_s,
            back_off=self.cool_down.back_off,
            longest_cool_down_s=self.cool_down.longest_s,
            stable_s=self.cool_down.stable_s,
            probes=self.probes,
        )


def read_guard_policy(path: Path) -> GuardPolicy:
    """Read a policy; paths in it become absolute.

    Raises:
        ConfigError: The file is unreadable or not of the schema; or a rung changes answers, and its
            loss is not what the report says that is named for it.
    """
    document = read_mapping(path, GuardPolicy)
    policy = checked(document, GuardPolicy, str(path))
    rungs = tuple(
        _placed(one, path.resolve().parent, f"{path}: rungs.{index}")
        for index, one in enumerate(policy.rungs)
    )
    return policy.model_copy(update={"rungs": rungs})


def _rung_problems(rungs: Sequence[RungSection]) -> Iterator[str]:
    for index, rung in enumerate(rungs):
        place = f"rungs.{index}"
        if rung.called in [other.called for other in rungs[:index]]:
            yield f"{place}.name is '{rung.called}', which is that of another rung."
        if rung.kind == "package" and rung.path is None:
            yield f"{place}.path is missing: the directory of the other package."
        if rung.kind != "package" and rung.path is not None:
            yield f"{place}.path is given, but the rung is the package itself, as '{rung.kind}'."
        if rung.same_answers and rung.measured_loss is not None:
            yield f"{place}.measured_loss is given, but '{rung.kind}' gives the same answers."
        if not rung.same_answers and rung.measured_loss is None:
            yield (
                f"{place}.measured_loss is missing: another package changes answers. Measure it"
                " with `moh-deploy verify OTHER --against PACKAGE --inputs ... --labels ... --json`"
                " and give metric, loss and report."
            )


def _other_problems(policy: GuardPolicy) -> Iterator[str]:
    names = [one.called for one in policy.rungs]
    if policy.drift is not None and policy.drift.rung not in names:
        yield f"drift.rung is '{policy.drift.rung}', expected one of {', '.join(names)}."
    elif policy.drift is not None and policy.rungs[names.index(policy.drift.rung)].same_answers:
        yield (
            f"drift.rung is '{policy.drift.rung}', which routes as the first rung does: it drifts"
            " as well. Name a rung of kind package, or leave drift out."
        )
    if policy.cool_down.longest_s < policy.cool_down.first_s:
        yield "cool_down.longest_s is less than cool_down.first_s."
    is_given = "spot_checks" in policy.model_fields_set
    if is_given and policy.spot_checks and not any(one.same_answers for one in policy.rungs[1:]):
        yield "spot_checks is given, but no rung below the first gives the same answers."


def _placed(rung: RungSection, folder: Path, place: str) -> RungSection:
    """Return a rung with absolute paths, once its loss is what its report says."""
    if rung.path is None or rung.measured_loss is None:
        return rung
    loss = rung.measured_loss
    loss = loss.model_copy(update={"report": folder / loss.report})
    _check_loss(loss, f"{place}.measured_loss")
    return rung.model_copy(update={"path": folder / rung.path, "measured_loss": loss})


def _check_loss(loss: MeasuredLoss, place: str) -> None:
    """Refuse a loss that is not in the report that it is said to be from."""
    try:
        report = read_json(loss.report, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"{place}.report is {loss.report}, which does not exist.") from None
    if not isinstance(report, dict) or not {"equal", "accuracy", "comparisons"} <= report.keys():
        raise ConfigError(
            f"{place}.report is {loss.report}, which is no JSON report of `moh-deploy verify`."
        )
    if loss.metric is None:
        if report["equal"] is not True:
            raise ConfigError(
                f"{place}: {loss.report} does not say that the packages are equal.",
                hint="Name the metric that was measured, and its loss.",
            )
        return
    metrics = [one for one in report["accuracy"] if isinstance(one, dict)]
    found = [one for one in metrics if str(one.get("metric")) == loss.metric]
    if not found:
        names = dict.fromkeys(str(one.get("metric")) for one in metrics)
        raise ConfigError(
            f"{place}.metric is '{loss.metric}'; {loss.report} has {shortened(names) or 'none'}."
        )
    # One for each reference that it was compared with: the largest counts.
    measured = max(_loss_of(one, f"{place}: {loss.report}") for one in found)
    # Rounded up is fine, rounded down is not.
    if loss.loss < measured - 5e-5:
        raise ConfigError(
            f"{place}.loss is {loss.loss:g}, but {loss.report} says {measured:g} of {loss.metric}."
        )


def _loss_of(metric: Mapping[str, object], place: str) -> float:
    """Return by how much a metric is worse in the package than in its reference."""
    reference, package = metric.get("reference"), metric.get("package")
    if not isinstance(reference, float | int) or not isinstance(package, float | int):
        raise ConfigError(f"{place} has no numbers for metric '{metric.get('metric')}'.")
    drop = reference - package if metric.get("better") == "higher" else package - reference
    if not math.isfinite(drop):
        raise ConfigError(f"{place}: metric '{metric.get('metric')}' is not finite.")
    return max(0.0, float(drop))
