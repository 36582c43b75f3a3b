"""Say what is installed here, what can be done, and what closes each gap."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.probes.abilities import abilities
from moh_deploy.probes.machine import look_around
from moh_deploy.progress import Progress, SilentProgress
from moh_deploy.report.doctor import DoctorReport


def doctor(*, plugin: Path | str | None = None, progress: Progress | None = None) -> DoctorReport:
    """Look at this machine.

    Native libraries are loaded, and operators run, in processes of their own: what is broken is a
    finding.

    Args:
        plugin: A plugin library for TensorRT; None: the installation's, if there is one.
        progress: What to report steps to.

    Returns:
        What was found. Look at `failure`: None if models can be exported and packages run here.
    """
    machine = look_around(None if plugin is None else Path(plugin), progress or SilentProgress())
    return DoctorReport(machine, abilities(machine))
