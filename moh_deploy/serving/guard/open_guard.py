"""Open the fallback chain of a served model, and the guard over it."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from moh_deploy.errors import ConfigError, MoHDeployError, ValidationError
from moh_deploy.runtime.base import Deployed, Variant
from moh_deploy.serving.guard.fallback_level import FallbackLevel, find_level
from moh_deploy.serving.guard.guard import Guard, GuardIO, cannot_serve
from moh_deploy.serving.guard.guard_io import AuditLog, ControlFile, Faults, RunningMarks, died_in
from moh_deploy.serving.guard.policy import GuardPolicy, read_guard_policy
from moh_deploy.serving.guard.state_machine import LevelFailed
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.validate.reference.layer_values import names_to_return


def open_guard(
    model: Deployed,
    settings: ServingSettings,
    inner: Sequence[str],
    way: Variant,
    *,
    is_restart: bool = False,
) -> Guard:
    """Find the fallback levels of a policy, and open those that it opens at the start.

    A level that cannot be opened is tried again after its cool-down, and the level below serves. A
    level whose known answer is wrong stops the first start.

    Args:
        settings: Policy, audit log and control file; whether a drill is allowed.
        way: How levels are opened: threads, kernels.
        is_restart: A process before this one has served: a wrong known answer opens its level.

    Raises:
        ConfigError: The policy is wrong, the control file has no folder, a drill has no control
            file, or a level does not fit the model.
        PackageError: The package of a level cannot be read.
        BackendError: No level can be opened.
        ValidationError: A level answers a recorded run wrongly.
    """
    log, control = (None if p is None else Path(p) for p in (settings.audit_log, settings.control))
    if settings.drill and control is None:
        raise ConfigError("drill is allowed, but there is no control file that says what to plant.")
    if control is not None and not control.parent.is_dir():
        raise ConfigError(
            f"the control file {control} is in a folder that does not exist.",
            hint="The file itself need not be there.",
        )
    policy = read_guard_policy(Path(settings.policy)) if settings.policy else GuardPolicy()
    package = None if model.is_compiled else model.made_from(None)
    names = () if package is None else names_to_return(package)
    gates = () if package is None else package.gate_names
    way = way.returning(tuple(dict.fromkeys((*inner, *names))))
    # A slow run is slow by the policy's own limit.
    limit_ms = policy.rungs[0].p99_ms
    slow_s = 0.25 if limit_ms is None else 3e-3 * limit_ms
    outputs = [output.name for output in model.manifest.outputs]
    faults = Faults(outputs, gates, slow_s) if settings.drill else None
    with ExitStack() as stack:
        levels = [
            # Faults are planted in the first level: the others are to help.
            find_level(section, model, way, stack, None if index else faults)
            for index, section in enumerate(policy.rungs)
        ]
        dead = died_in(log)
        # Before the log: where the disk is full, an empty one would stay.
        marks = RunningMarks(log, policy.names)
        stack.callback(marks.close)
        audit = AuditLog(log)
        failures = _opened_at_start(levels, policy, is_restart)
        for index, name in enumerate(policy.names):
            if name in dead:
                failures.append(LevelFailed(index, "process died"))
        controlled = None if control is None else ControlFile(control, policy.names, faults)
        guard = Guard(model, levels, policy, GuardIO(audit, marks, controlled, stack.pop_all()))
        guard.apply(*failures)
        guard.tick()
        return guard


def _opened_at_start(
    levels: Sequence[FallbackLevel], policy: GuardPolicy, is_restart: bool
) -> list[LevelFailed]:
    """Open the levels that are opened at the start, and return those that cannot serve."""
    problems: dict[int, MoHDeployError] = {}
    for index, level in enumerate(levels):
        try:
            if policy.rungs[index].opened == "start":
                level.open()
        except MoHDeployError as error:
            if isinstance(error, ValidationError) and not is_restart:
                raise
            problems[index] = error
    if len(problems) == len(levels):
        raise problems[0]
    return [cannot_serve(index, levels[index], error) for index, error in problems.items()]
