"""The policy of a guard: a YAML file of the fallback chain, and of what moves serving along it.

docs/guard.md describes it, `examples/serving/policy.yaml` is an example.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moh_deploy.config.checked_yaml import checked, read_mapping
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.suggest import shortened

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    # Strict: the text '4' is no number. Unknown keys are mostly misspelt ones.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class MeasuredLoss(_Section):
    """The measured loss of a level that changes answers, and the report that proves it.

    The report is JSON of `moh-deploy verify FALLBACK --against PACKAGE --json`.
    """

    report: Annotated[Path, Field(strict=False)]  # relative to the policy
    metric: str | None = None  # such as `top-1`; None: the report says that the packages are equal
    loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class LevelSection(_Section):
    """A fallback level, an entry of `rungs:`.

    It runs the package on kernels, by its function bodies or with all its layers dense, or runs
    another package.
    """

    kind: Literal["kernels", "functions", "dense", "package"]
    name: Annotated[str, Field(min_length=1)] = ""  # in logs and metrics; by default its kind
    path: Annotated[Path, Field(strict=False)] | None = None  # relative to the policy
    measured_loss: MeasuredLoss | None = None  # of a level that changes answers, and of no other
    p99_ms: _Seconds | None = None  # limit of the 99th percentile of its runs, in milliseconds
    opened: Literal["start", "first use"] = "start"

    @property
    def called(self) -> str:
        """Its name, or else its kind."""
        return self.name or self.kind

    @property
    def same_answers(self) -> bool:
        """Tell whether its answers are those of the package, except for rounding."""
        return self.kind != "package"


class FaultSection(_Section):
    """`faults:` how many wrong answers within how many seconds open a level."""

    count: _Count = 1
    window_s: _Seconds = 60.0


class LatencySection(_Section):
    """`latency:` the runs whose 99th percentile is compared with `p99_ms`."""

    window_s: _Seconds = 60.0
    min_samples: _Count = 200
    recover_share: Annotated[float, Field(gt=0, le=1)] = 0.8  # of p99_ms, to close the level


class CoolDownSection(_Section):
    """`cool_down:` how long an open level rests before it is probed."""

    first_s: _Seconds = 30.0
    back_off: Annotated[float, Field(ge=1, le=100)] = 2.0  # factor, with each opening
    longest_s: _Seconds = 600.0
    stable_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0  # closed: begins anew

    def seconds(self, openings: int) -> float:
        """Return the length of a cool-down after so many earlier openings."""
        # The longest is reached long before a power becomes too large for a float.
        grown = self.first_s * self.back_off ** min(openings, 32)
        return max(self.first_s, min(self.longest_s, grown))


class DriftSection(_Section):
    """`drift:` the level that serves while an alarm of `moh-deploy watch` holds."""

    rung: str


_USUAL_CHAIN = (LevelSection(kind="kernels"), LevelSection(kind="functions"))


class GuardPolicy(_Section):
    """The content of a policy; `rungs` is the fallback chain, the fastest level first.

    `spot_checks` is the share of answers that the next level with the same answers computes again
    after they were sent. It finds answers that are wrong and finite.
    """

    rungs: Annotated[tuple[LevelSection, ...], Field(strict=False, min_length=1)] = _USUAL_CHAIN
    faults: FaultSection = FaultSection()
    latency: LatencySection = LatencySection()
    cool_down: CoolDownSection = CoolDownSection()
    probes: _Count = 5  # so many right answers in a row close a level
    spot_checks: Annotated[float, Field(ge=0, le=1)] = 0.01
    drift: DriftSection | None = None  # None: an alarm is logged, and changes nothing

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fallback levels, in order."""
        return tuple(level.called for level in self.rungs)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> GuardPolicy:
        # All at once: a file is not to be mended one run at a time.
        if problems := list(_problems(self)):
            raise ValueError("\n".join(problems))
        return self


def read_guard_policy(path: Path) -> GuardPolicy:
    """Read a policy; paths in it become absolute.

    Raises:
        ConfigError: The file is unreadable or not of the schema; or the loss of a level is not that
            of its report.
    """
    document = read_mapping(path, GuardPolicy)
    policy = checked(document, GuardPolicy, str(path))
    levels, folder = [], path.resolve().parent
    for index, level in enumerate(policy.rungs):
        if level.path is not None and level.measured_loss is not None:
            loss = level.measured_loss
            loss = loss.model_copy(update={"report": folder / loss.report})
            _check_loss(loss, f"{path}: rungs.{index}.measured_loss")
            level = level.model_copy(update={"path": folder / level.path, "measured_loss": loss})
        levels.append(level)
    return policy.model_copy(update={"rungs": tuple(levels)})


def _problems(policy: GuardPolicy) -> Iterator[str]:
    names, drift = policy.names, policy.drift
    for index, level in enumerate(policy.rungs):
        place = f"rungs.{index}"
        if level.called in names[:index]:
            yield f"{place}.name is '{level.called}', which is that of another level."
        if level.same_answers and level.path is not None:
            yield f"{place}.path is given, but '{level.kind}' runs the package itself."
        if level.same_answers and level.measured_loss is not None:
            yield f"{place}.measured_loss is given, but '{level.kind}' gives the same answers."
        if not level.same_answers and level.path is None:
            yield f"{place}.path is missing: the directory of the other package."
        if not level.same_answers and level.measured_loss is None:
            yield (
                f"{place}.measured_loss is missing: another package changes answers. Measure it"
                " with `moh-deploy verify OTHER --against PACKAGE --inputs ... --labels ... --json`"
                " and give metric, loss and report."
            )
    if drift is not None and drift.rung not in names:
        yield f"drift.rung is '{drift.rung}', expected one of {', '.join(names)}."
    elif drift is not None and policy.rungs[names.index(drift.rung)].same_answers:
        yield (
            f"drift.rung is '{drift.rung}', which routes as the first level does: it drifts as"
            " well. Name a level of kind package, or leave drift out."
        )
    if policy.cool_down.longest_s < policy.cool_down.first_s:
        yield "cool_down.longest_s is less than cool_down.first_s."
    is_given = "spot_checks" in policy.model_fields_set
    if is_given and policy.spot_checks and not any(s.same_answers for s in policy.rungs[1:]):
        yield "spot_checks is given, but no level below the first gives the same answers."


class _Metric(BaseModel):
    metric: str
    better: str
    reference: float
    package: float

    @property
    def loss(self) -> float:
        """By how much the package is worse than the reference."""
        drop = self.reference - self.package
        return drop if self.better == "higher" else -drop


class _VerifyReport(BaseModel):
    equal: bool
    accuracy: list[_Metric]
    comparisons: list[object]


def _check_loss(loss: MeasuredLoss, place: str) -> None:
    """Refuse a loss that is below that of its report."""
    try:
        report = _VerifyReport.model_validate(read_json(loss.report, error=ConfigError))
    except FileNotFoundError:
        raise ConfigError(f"{place}.report is {loss.report}, which does not exist.") from None
    except ValidationError:
        raise ConfigError(
            f"{place}.report is {loss.report}, which is no JSON report of `moh-deploy verify`."
        ) from None
    if loss.metric is None:
        if not report.equal:
            raise ConfigError(
                f"{place}: {loss.report} does not say that the packages are equal.",
                hint="Name the metric that was measured, and its loss.",
            )
        return
    # A report has a metric once for each reference: the largest loss counts.
    measured = [metric.loss for metric in report.accuracy if metric.metric == loss.metric]
    if not measured:
        names = dict.fromkeys(metric.metric for metric in report.accuracy)
        raise ConfigError(
            f"{place}.metric is '{loss.metric}'; {loss.report} has {shortened(names) or 'none'}."
        )
    if not all(map(math.isfinite, measured)):
        raise ConfigError(f"{place}: {loss.report} has no finite numbers of '{loss.metric}'.")
    # Rounded up is fine, rounded down is not.
    if loss.loss < max(0.0, *measured) - 5e-5:
        raise ConfigError(
            f"{place}.loss is {loss.loss:g}, but {loss.report} says {max(measured):g} of"
            f" {loss.metric}."
        )
