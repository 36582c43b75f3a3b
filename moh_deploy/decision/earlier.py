"""The report of the look before: which look this one is, and what was told already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from moh_deploy.decision.decide import ArmVerdict
from moh_deploy.decision.plan import PlanFile
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.digest import sha256_of_json

Told = Mapping[str, tuple[ArmVerdict, int]]
"""Name of an arm to its verdict, and the look in which it was found."""


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
    return look + 1, dict(_verdict(item, path) for item in content["arms"])


def _verdict(arm: object, path: Path) -> tuple[str, tuple[ArmVerdict, int]]:
    if isinstance(arm, dict) and arm.get("verdict") == "reference":
        return str(arm.get("name")), ("cannot tell", 1)
    known = get_args(ArmVerdict)
    if not isinstance(arm, dict) or "name" not in arm or arm.get("verdict") not in known:
        raise ConfigError(f"{path}: an arm has no name, or no verdict of {', '.join(known)}.")
    if not isinstance(arm.get("look"), int):
        raise ConfigError(f"{path}: arm '{arm.get('name')}' does not say in which look.")
    return str(arm["name"]), (arm["verdict"], arm["look"])
