"""Open the ladder of a served model, and the guard over it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.runtime.base import Deployed, Variant
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.guard.answer_check import AnswerCheck
from moh_deploy.serving.guard.audit import AuditLog
from moh_deploy.serving.guard.control import ControlFile
from moh_deploy.serving.guard.faults import Faults
from moh_deploy.serving.guard.guard import Guard, Hands, Watched
from moh_deploy.serving.guard.ladder import LadderSetting, Rung, find_rung, open_at_start
from moh_deploy.serving.guard.ladder_state import LadderState
from moh_deploy.serving.guard.policy import GuardPolicy, read_guard_policy
from moh_deploy.serving.guard.running_marks import RunningMarks, died_in
from moh_deploy.system.staging import scratch_directory, temporary_place
from moh_deploy.validate.reference.layer_values import layer_values


@dataclass(frozen=True)
class GuardOptions:
    """The files and limits that a guard is opened with.

    Attributes:
        policy: YAML file; None for kernels, then function bodies.
        audit_log: What transitions are appended to; None for nothing.
        control: The control file; None for none.
        drill: The control file may plant faults.
        is_restart: A process before this one has served: where a rung answers a recorded run
            wrongly now, the rung below goes on.
    """

    policy: Path | None = None
    audit_log: Path | None = None
    control: Path | None = None
    drill: bool = False
    is_restart: bool = False


def open_guard(model: Deployed, options: GuardOptions, inner: Sequence[str], way: Variant) -> Guard:
    """Find the rungs, and open those that the policy says.

    A rung that cannot be opened is open as a breaker is, and the rung below serves; it is tried
    again when its cool-down is over. A rung whose known answer is wrong stops the first start.

    Args:
        model: What is served.
        options: Policy, log, control file.
        inner: Inner values that observers may want.
        way: How rungs are opened: threads, kernels.

    Raises:
        ConfigError: The policy is wrong, the control file has no folder, faults have no control
            file to come from, or a rung does not fit the model.
        PackageError: The package of a rung cannot be read.
        BackendError: No rung can be opened.
        ValidationError: A rung answers a recorded run wrongly.
    """
    if options.drill and options.control is None:
        raise ConfigError("drill is allowed, but there is no control file that says what to plant.")
    if options.control is not None and not options.control.parent.is_dir():
        raise ConfigError(
            f"the control file {options.control} is in a folder that does not exist.",
            hint="The file itself need not be there.",
        )
    policy = GuardPolicy() if options.policy is None else read_guard_policy(options.policy)
    watched = _watched(model)
    names = [name for layer in watched.layers for name in layer.names]
    limit_ms = policy.rungs[0].p99_ms
    # A slow run is slow by the policy's own limit.
    slow_s = 0.25 if limit_ms is None else 3e-3 * limit_ms
    faults = Faults(slow_s) if options.drill else None
    with ExitStack() as stack:
        scratch = temporary_place("moh-deploy-guard")
        # A package that is written for a rung lives as long as the guard.
        if any(one.kind == "dense" for one in policy.rungs):
            scratch = stack.enter_context(scratch_directory("moh-deploy-guard"))
        setting = LadderSetting(way, tuple(dict.fromkeys((*inner, *names))), scratch)
        rungs = [
            # Faults are planted in the first rung: the others are what shall help.
            Rung(find_rung(one, model, setting), watched.gates, None if index else faults)
            for index, one in enumerate(policy.rungs)
        ]
        drift_to = (
            None
            if policy.drift is None
            else [one.called for one in policy.rungs].index(policy.drift.rung)
        )
        state = LadderState(
            [rung.found.name for rung in rungs], list(map(policy.limits, policy.rungs)), drift_to
        )
        dead = died_in(options.audit_log)
        # Before the log: where the disk is full, an empty one would stay.
        marks = RunningMarks(options.audit_log, state.names)
        stack.callback(marks.close)
        hands = Hands(
            AuditLog(options.audit_log),
            marks,
            None if options.control is None else ControlFile(options.control),
            faults,
            policy.spot_checks,
        )
        problems = {}
        for index, (section, rung) in enumerate(zip(policy.rungs, rungs, strict=True)):
            if section.opened == "start" and (problem := open_at_start(rung)) is not None:
                if isinstance(problem, ValidationError) and not options.is_restart:
                    raise problem
                problems[index] = problem
                state.unavailable(hands.clock(), index, problem)
                name = rung.found.name
                print(f"warning: rung '{name}' cannot be opened: {problem}", file=sys.stderr)
        if len(problems) == len(rungs):
            raise problems[0]
        for name in dead:
            state.died(hands.clock(), name)
        guard = Guard(rungs, state, watched, hands, stack.pop_all())
        guard.tick()
        return guard


def _watched(model: Deployed) -> Watched:
    outputs = [one.name for one in model.manifest.outputs]
    has_samples = BatchAxis.of(model.manifest) is not None
    if model.is_compiled:
        check = AnswerCheck.of(outputs, (), (), has_samples=has_samples)
        return Watched(check, (), None, ())
    package = model.made_from(None)
    gates = tuple(package.gate_names)
    check = AnswerCheck.of(outputs, gates, package.vectors, has_samples=has_samples)
    return Watched(check, gates, package, layer_values(package))
