"""Bring the guard's policy, and the packages beside the served one, into a bundle."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.package.manifest_json import MANIFEST_NAME
from moh_deploy.serving.guard.policy import read_guard_policy
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.bounded_yaml import read_yaml
from moh_deploy.system.staging import link_or_copy
from moh_deploy.validate.compare.recorded_parity import require_equal

GUARD, SHADOW = "guard", "shadow"
POLICY_NAME, AUDIT_NAME, CONTROL_NAME = "policy.yaml", "audit.jsonl", "control.json"


def bring_along(settings: ServingSettings, fallback: Path | None, root: Path) -> ServingSettings:
    """Copy policy and shadow into a bundle; return settings that name them relative to it.

    Args:
        settings: With the paths of policy and shadow on this machine.
        fallback: The package of the policy's rung of kind `package`, in place of its `path`.
        root: The bundle.

    Raises:
        ConfigError: The policy is wrong, or has no rung for the fallback.
        PackageError: A package beside is none, or has changed since it was written.
        ValidationError: `verify` refuses a package beside.
    """
    if fallback is not None and settings.policy is None:
        raise ConfigError(
            "a fallback is another package, whose loss has to be measured: it needs a policy.",
            hint="Give it one with a rung of kind package: docs/production.md.",
        )
    if settings.shadow is not None:
        copy_package(Path(settings.shadow), root / SHADOW)
        settings = replace(settings, shadow=SHADOW)
    if not settings.guard:
        return settings
    (root / GUARD).mkdir()
    if settings.policy is not None:
        _copy_policy(Path(settings.policy), fallback, root / GUARD)
        settings = replace(settings, policy=f"{GUARD}/{POLICY_NAME}")
    audit_log, control = f"{GUARD}/{AUDIT_NAME}", f"{GUARD}/{CONTROL_NAME}"
    return replace(settings, audit_log=audit_log, control=control)


def copy_package(source: Path, target: Path) -> None:
    """Copy a package, or link its files where the disk can.

    Raises:
        PackageError: It is no package, or has changed since it was written.
        ValidationError: `verify` refuses it.
    """
    package = OnnxPackage.open(source)
    require_equal(package)
    target.mkdir()
    for name in (*package.manifest.files, MANIFEST_NAME):
        link_or_copy(package.root / name, target / name)


def _copy_policy(policy: Path, fallback: Path | None, folder: Path) -> None:
    """Write the policy, with the packages and reports that it names beside it."""
    # Read first: its errors are said of the user's file.
    rungs = read_guard_policy(policy).rungs
    packages = [index for index, rung in enumerate(rungs) if rung.kind == "package"]
    if fallback is not None and len(packages) != 1:
        raise ConfigError(
            f"{policy}: has {len(packages)} rungs of kind package, expected the one that the"
            " fallback is for."
        )
    document: Any = read_yaml(policy, error=ConfigError)
    for index in packages:
        path, loss = rungs[index].path, rungs[index].measured_loss
        assert path is not None, "read_guard_policy refuses a rung without its package"
        assert loss is not None, "read_guard_policy refuses a package without its loss"
        section = document["rungs"][index]
        copy_package(fallback or path, folder / f"package-{index}")
        shutil.copyfile(loss.report, folder / f"report-{index}.json")
        section["path"] = f"package-{index}"
        section["measured_loss"]["report"] = f"report-{index}.json"
    (folder / POLICY_NAME).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
