"""The JSON of a decision, as far as costs rest on it: times of the arms, and what was decided."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moh_deploy.config.checked_yaml import dotted
from moh_deploy.decision.cost.report import SizeOutcome
from moh_deploy.decision.latency_promise import LEAST_BLOCKS
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import read_json

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    # Reports say much more, which costs do not need.
    model_config = ConfigDict(extra="ignore", frozen=True)


class DecidedLatency(_Part):
    """Times of one arm at one set of sizes; see `moh_deploy.decision.report.LatencyFigure`."""

    sizes: dict[str, int]
    p50_ms: _Positive
    block_means_ms: tuple[_Positive, ...] = ()


class DecidedArm(_Part):
    """An arm; see `moh_deploy.decision.report.ArmReport`."""

    name: str
    verdict: Literal["win", "loss", "cannot tell", "reference"]
    dense: bool
    is_bound: bool
    latency: tuple[DecidedLatency, ...]


class DecidedWouldDo(_Part):
    """An arm without routers that does as well."""

    name: str


class Decided(_Part):
    """The report; see `moh_deploy.decision.report.DecisionReport`."""

    schema_version: Literal[1]
    sha256: str | None = None  # reports of before have none
    plan_digest: str
    reference: str
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    machine: str
    arms: Annotated[tuple[DecidedArm, ...], Field(min_length=1)]
    would_do: tuple[DecidedWouldDo, ...]
    break_even: tuple[SizeOutcome, ...] = ()

    @property
    def served(self) -> tuple[DecidedArm, ...]:
        """The arms that could be served, the reference first."""
        arms = [arm for arm in self.arms if not arm.is_bound]
        return tuple(sorted(arms, key=lambda arm: arm.name != self.reference))

    @property
    def sizes(self) -> tuple[dict[str, int], ...]:
        """At which times were measured."""
        return tuple(latency.sizes for latency in self.served[0].latency)


def read_decided(path: Path) -> Decided:
    """Read what `moh-deploy compare --json` printed.

    Raises:
        ConfigError: It is no such report, was edited, or times in it do not bear costs.
    """
    again = "It is what `moh-deploy compare --plan plan.yaml --json` prints."
    try:
        content = read_json(path, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(f"from is {path}, which does not exist.", hint=again) from None
    try:
        found = Decided.model_validate(content)
    except ValidationError as error:
        item = error.errors()[0]
        place = dotted(item["loc"]) or "the whole"
        raise ConfigError(
            f"{path} is no JSON report of `moh-deploy compare`: {place}: {item['msg']}.", hint=again
        ) from None
    assert isinstance(content, dict)  # or it would not have been valid
    plain = {key: value for key, value in content.items() if key != "sha256"}
    if found.sha256 is not None and found.sha256 != sha256_of_json(plain):
        raise ConfigError(
            f"{path} was edited since `moh-deploy compare` printed it: its sha256 is of another"
            " decision.",
            hint="Price the decision as it was printed, or run `moh-deploy compare` again.",
        )
    _check(found, path)
    return found


def _check(found: Decided, path: Path) -> None:
    if found.reference not in [decided_arm.name for decided_arm in found.served]:
        raise ConfigError(f"{path}: reference is '{found.reference}', which is no arm of it.")
    if not found.sizes:
        raise ConfigError(
            f"{path}: no time was measured, so nothing can be priced.",
            hint="Give the plan `latency`, and `sizes` that traffic has.",
        )
    for arm in found.served:
        # Draws of blocks take all arms at once, so all have the same sizes and as many blocks.
        if tuple(latency.sizes for latency in arm.latency) != found.sizes:
            raise ConfigError(f"{path}: arm '{arm.name}' was timed at other sizes.")
        counts = [len(latency.block_means_ms) for latency in arm.latency]
        if counts != [len(latency.block_means_ms) for latency in found.served[0].latency]:
            raise ConfigError(f"{path}: arm '{arm.name}' has another number of blocks of rounds.")
        if min(counts) < LEAST_BLOCKS:
            raise ConfigError(
                f"{path}: arm '{arm.name}' has {min(counts)} blocks of rounds, expected at least"
                f" {LEAST_BLOCKS}.",
                hint="Run `moh-deploy compare` again, with more `seconds` where rounds were few:"
                " earlier versions wrote no blocks.",
            )
