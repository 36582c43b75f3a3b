"""Say what is installed here, what can be done, and what closes each gap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moh_deploy.machine.abilities import Ability, abilities
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.doctor_report import DoctorReport
from moh_deploy.machine.machine import look_around
from moh_deploy.system.progress import Progress, SilentProgress


def doctor(
    artefact: Path | str | None = None,
    *,
    plugin: Path | str | None = None,
    progress: Progress | None = None,
) -> DoctorReport:
    """Look at this machine.

    Native libraries are loaded, and operators run, in processes of their own: what is broken is a
    finding.

    Args:
        artefact: A package or an engine directory, to be loaded as well; None: none.
        plugin: A plugin library for TensorRT; None: the installation's, if there is one.
        progress: What to report steps to.

    Returns:
        What was found. Look at `failure`: None if models can be exported, and packages, and the
        artefact, run here.
    """
    progress = progress or SilentProgress()
    machine = look_around(None if plugin is None else Path(plugin), progress)
    found = abilities(machine)
    if artefact is not None:
        with progress.step("loading the artefact"):
            found += (_ability_to_run(Path(artefact)),)
    return DoctorReport(machine, found)


@dataclass(frozen=True)
class _Loaded:
    how: str


def _ability_to_run(artefact: Path) -> Ability:
    loaded, name = ask(_Loaded, "artefact", str(artefact)), f"run {artefact}"
    if isinstance(loaded, Failed):
        return Ability(name, None, (loaded,), essential=True)
    return Ability(name, loaded.how, (), essential=True)
