"""Build the package by setuptools, for the machine that builds or, with `-C target`, for many.

    python -m build --wheel -C target=aarch64

makes a wheel with kernels for every Linux of that architecture with glibc 2.28 or newer: compiled
by zig, which comes from PyPI as the other tools do, and refused if the library asks for more than
its tag says. Without a target this is setuptools' own backend.

    pip install . -C kernels=off        # or require: MOH_DEPLOY_BUILD_KERNELS, as pip's option
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = Mapping[str, "str | list[str]"] | None
# One zig, so that the same sources give the same library. The headers come from the system.
TOOLS = ("auditwheel>=6.8", "cmake>=3.22", "ninja", "ziglang==0.17.1")


class WrongTag(Exception):
    """A wheel's library asks more of a machine than the wheel's name says."""


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    needed = build_meta.get_requires_for_build_wheel(config_settings)
    return [*needed, *(TOOLS if _target(config_settings) else ())]


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    target = _target(config_settings)
    settings = _with_kernels(config_settings)
    if target:
        settings.pop("target")
        options = settings.get("--build-option", [])
        options = [options] if isinstance(options, str) else options
        settings["--build-option"] = [*options, f"--target={target}"]
    name = build_meta.build_wheel(wheel_directory, settings, metadata_directory)
    if target:
        made = Path(wheel_directory, name)
        try:
            check_tag(made)
        except WrongTag:
            made.unlink()  # or it would be published under a name that promises too much
            raise
    return name


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    settings = _with_kernels(config_settings)
    return build_meta.build_editable(wheel_directory, settings, metadata_directory)


def _with_kernels(config_settings: Settings) -> dict[str, "str | list[str]"]:
    """Say to `tools/build_kernels.py` what `-C kernels=` says; return the other settings."""
    settings = dict(config_settings or {})
    if kernels := settings.pop("kernels", None):
        os.environ["MOH_DEPLOY_BUILD_KERNELS"] = str(kernels)
    return settings


def check_tag(wheel: Path) -> None:
    """Ask auditwheel which machines the library is good for.

    Raises:
        WrongTag: They are not all of those that the wheel's name promises.
    """
    promised = wheel.stem.rpartition("-")[2]
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["overall_tag"] if done.returncode == 0 else done.stderr
    if not _is_covered(promised, found):
        raise WrongTag(f"{wheel.name} is good for less than its name says; auditwheel: {found}")


def _is_covered(promised: str, found: str) -> bool:
    """Tell whether a library for `found` runs on all of `promised`: an older glibc will do."""
    promise, finding = (
        re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", tag) for tag in (promised, found)
    )
    if promise is None or finding is None or promise[3] != finding[3]:
        return False
    return (int(finding[1]), int(finding[2])) <= (int(promise[1]), int(promise[2]))


def _target(config_settings: Settings) -> str | None:
    target = (config_settings or {}).get("target")
    assert target is None or isinstance(target, str)
    return target
