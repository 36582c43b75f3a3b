"""Say what is installed here, what can be done, and what closes each gap."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.doctor_report import DoctorReport
from moh_deploy.machine.machine import Ability, abilities, look_around
from moh_deploy.system.progress import Progress, SilentProgress


def doctor(
    artefact: Path | str | None = None,
    *,
    plugin: Path | str | None = None,
    progress: Progress | None = None,
) -> DoctorReport:
    """Report what is installed on this machine, what can be done with it, and what is missing.

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
            how = ask(_how_it_runs, str(artefact))
            # Essential: an artefact is named to learn whether it runs here.
            failed = (how,) if isinstance(how, Failed) else ()
            runs = None if isinstance(how, Failed) else how
            found += (Ability(f"run {artefact}", runs, failed, essential=True),)
    return DoctorReport(machine, found)


def _how_it_runs(root: str) -> str:
    """Load a package or an engine, as `moh-deploy run` would."""
    # In the other process: the runtimes may be missing or broken here.
    from moh_deploy.runtime.base import Variant
    from moh_deploy.runtime.models import runtime_for
    from moh_deploy.runtime.open_runner import find_deployed

    model = find_deployed(root)
    variant = Variant(runtime=runtime_for(None, model.preferred_runtime))
    with model.open(variant) as runner:
        found = runner.describe()
    if model.is_compiled:
        return found.runtime
    nodes = f"{found.kernel_nodes} nodes on a kernel, {found.function_nodes} as functions"
    dense = list(found.layer_impl.values()).count("dense")
    return f"{found.runtime}, {nodes}" + (f", {dense} dense" if dense else "")
