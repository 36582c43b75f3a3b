"""Bring the guard's policy, and the packages beside the served one, into a bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class GuardFiles:
    """Files that go into a bundle beside the package: policy, fallback, shadow.

    Attributes:
        guard: Answers are judged, and a rung below answers where the first fails.
        policy: The policy; None for kernels, then function bodies.
        fallback: The package of the policy's rung of kind `package`, in place of its `path`.
        shadow: The package that is run beside.
    """

    guard: bool = False
    policy: Path | None = None
    fallback: Path | None = None
    shadow: Path | None = None


NOTHING_BESIDE = GuardFiles()


def bring_along(files: GuardFiles, root: Path, settings: ServingSettings) -> ServingSettings:
    """Copy them into a bundle; return the settings that name them there, relative to it.

    Raises:
        ConfigError: The policy is wrong, or has no rung for the fallback.
        PackageError: A package beside is none, or has changed since it was written.
        ValidationError: `verify` refuses a package beside.
    """
    if files.fallback is not None and files.policy is None:
        raise ConfigError(
            "a fallback is another package, whose loss has to be measured: it needs a policy.",
            hint="Give it one with a rung of kind package: docs/production.md.",
        )
    if files.shadow is not None:
        copy_package(files.shadow, root / SHADOW)
        settings = replace(settings, shadow=SHADOW)
    if not files.guard:
        return settings
    (root / GUARD).mkdir()
    if files.policy is not None:
        _copy_policy(files.policy, files.fallback, root / GUARD)
        settings = replace(settings, policy=f"{GUARD}/{POLICY_NAME}")
    return replace(
        settings,
        guard=True,
        audit_log=f"{GUARD}/{AUDIT_NAME}",
        control=f"{GUARD}/{CONTROL_NAME}",
    )


def settings_at(settings: ServingSettings, root: Path) -> ServingSettings:
    """Return settings whose paths lead to the files of a bundle in this place."""

    def place(path: str | None) -> str | None:
        return None if path is None else str(root / path)

    return replace(
        settings,
        policy=place(settings.policy),
        audit_log=place(settings.audit_log),
        control=place(settings.control),
        shadow=place(settings.shadow),
        reference=place(settings.reference),
        library=place(settings.library),
    )


def copy_package(source: Path, target: Path) -> None:
    """Copy a package, or link its files where the disk can.

    Raises:
        PackageError: It is none, or has changed since it was written.
        ValidationError: `verify` refuses it.
    """
    package = OnnxPackage.open(source)
    require_equal(package)
    target.mkdir()
    for name in (*package.manifest.files, MANIFEST_NAME):
        link_or_copy(package.root / name, target / name)


def _copy_policy(policy: Path, fallback: Path | None, folder: Path) -> None:
    """Write the policy with what it names beside it."""
    # Read first: what is wrong with it is said of the user's file.
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
