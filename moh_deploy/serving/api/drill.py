"""Break a server on purpose, under load, and report what its clients saw."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.native import kernel_library
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Deployed, Description, Variant
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.drill import targets
from moh_deploy.serving.drill.drill import KILL, Drill, DrillReport
from moh_deploy.serving.guard.guard_io import CONTROL_FILE, FAULTS
from moh_deploy.serving.guard.policy import GuardPolicy, read_guard_policy
from moh_deploy.serving.settings import LARGEST_OPTION, ServingSettings
from moh_deploy.serving.triton.bundle_json import bundled_model, is_bundle
from moh_deploy.serving.triton.server import find_server
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import check_file_output
from moh_deploy.system.staging import scratch_directory
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.compare.tolerances import Tolerance

ALL_FAULTS = (*FAULTS, KILL)
_MOST_CASES = 8


def drill(
    package_dir: Path | str,
    *,
    faults: Sequence[str] = (),
    policy: Path | str | None = None,
    clients: int = 4,
    seconds: float = 3.0,
    trip_timeout: float = 10.0,
    return_timeout: float = 60.0,
    in_process: bool = False,
    tritonserver: Path | str | None = None,
    url: str | None = None,
    name: str | None = None,
    control: Path | str | None = None,
    audit_log: Path | str | None = None,
    progress: Progress | None = None,
) -> DrillReport:
    """Serve a package with a guard, plant one fault after the other, and count what clients get.

    Every answer is compared with what the package itself computes, on kernels and as function
    bodies; of a fallback level that is another package, with that one's own.

    Args:
        package_dir: The package, or a bundle, whose own policy is drilled.
        faults: What is planted, in this order: `nan`, `gates`, `slow`, `crash`, `drift`,
            `missing-library`, `wrong`, `kill`; all of them without.
        policy: YAML file of the guard, see `moh_deploy.serving.guard.policy`; None for one of short
            cool-downs, so that a drill takes a minute.
        clients: How many ask at the same time, each one request after the other.
        seconds: How long the load runs before, and each fault stays.
        trip_timeout: A fault stays so long, in seconds, until the guard has noticed it.
        return_timeout: How long the first level may take to come back, in seconds.
        in_process: Serve in this process, by no protocol: without a worker to kill.
        tritonserver: Serve a bundle by this Triton: the folder with `bin/tritonserver`, or an
            environment with `nvidia-pytriton`. Without all three `moh-deploy serve` serves.
        url: Break this server, `http://HOST:PORT`, which runs with a guard and a drill allowed.
        name: What it calls the model; None for what the bundle says.
        control: Its control file; None for that of the bundle.
        audit_log: What its guard appends to; None for that of the bundle.
        progress: What to report steps to.

    Returns:
        What clients saw. Look at `passed`, or `failure`.

    Raises:
        ConfigError: A fault is unknown, a number is out of its range, or the policy is wrong.
        PackageError: It is no package, or has changed since it was written.
        BackendError: The runtime failed, or the server did not start.
    """
    progress = progress or SilentProgress()
    has_worker = not in_process and url is None
    for fault in faults:
        if fault not in ALL_FAULTS:
            raise ConfigError(
                f"fault '{fault}' is not one of {', '.join(ALL_FAULTS)}.",
                hint=did_you_mean(fault, ALL_FAULTS) or None,
            )
        if fault == KILL and not has_worker:
            raise ConfigError("there is no worker that a drill may kill here: leave out 'kill'.")
    asked = tuple(faults) or (ALL_FAULTS if has_worker else FAULTS)
    for option, number in (
        ("clients", clients),
        ("seconds", seconds),
        ("trip-timeout", trip_timeout),
        ("return-timeout", return_timeout),
    ):
        if not 0 < number <= LARGEST_OPTION:
            raise ConfigError(
                f"{option} is {number:g}, expected more than 0, and {LARGEST_OPTION:g} at most."
            )
    if sum([in_process, tritonserver is not None, url is not None]) > 1:
        raise ConfigError("of in-process, tritonserver and url one can be given.")
    server = None if tritonserver is None else find_server(Path(tritonserver))
    if tritonserver is not None and server is None:
        raise ConfigError(f"tritonserver is {tritonserver}, where there is no bin/tritonserver.")
    with progress.step("reading the package"):
        root, bundled = Path(package_dir), None
        if is_bundle(root):
            root, bundled = bundled_model(root)
            policy = policy or bundled.policy
        model = find_deployed(root)
        if model.is_compiled:
            raise ConfigError(f"{model.name} is an engine: only packages can be drilled yet.")
        package = model.made_from(None)
    with scratch_directory("moh-deploy-drill") as folder:
        with progress.step("running the package by itself"):
            alone = _Alone.of(model, package)
        if url is not None and policy is None:
            # Of a server that runs nothing is known but what it was given: the usual one.
            rules, source = GuardPolicy(), Path()
        else:
            rules, source = _policy(policy, alone, folder)
        with progress.step("making the cases"):
            cases = _cases(package, alone, rules)
        with progress.step("starting the server"):
            if url is not None:
                files = _files_of_server(name, control, audit_log, bundled)
                target: targets.Target = targets.ServerAt(
                    url, files[0], package.manifest, *files[1:]
                )
            elif server is not None:
                target = targets.Triton(model, source, server, folder)
            elif in_process:
                settings = ServingSettings("drilled", policy=str(source), sample_every=0)
                target = targets.InProcess(model, settings, folder)
            else:
                target = targets.HttpServer(model, source, folder)
        with target:
            load = targets.Load([target.connect() for _ in range(clients)], cases, alone.rule)
            first = rules.names[0]
            breaking = Drill(target, load, seconds, trip_timeout, return_timeout, first)
            try:
                with progress.step("breaking it"):
                    before, found = breaking.run(asked)
            finally:
                load.close()
            return DrillReport(
                subject=model.name,
                server=target.name,
                policy=str(policy or (_OWN_POLICY if url is None else _USUAL_POLICY)),
                clients=clients,
                seconds=seconds,
                before=before,
                faults=found,
                kernels=alone.description.kernels,
            )


def _files_of_server(
    name: str | None,
    control: Path | str | None,
    audit_log: Path | str | None,
    bundled: ServingSettings | None,
) -> tuple[str, Path, Path]:
    """Return what a server that runs calls the model, its control file and its audit log."""
    if bundled is not None:
        name = name or bundled.name
        control, audit_log = control or bundled.control, audit_log or bundled.audit_log
    if name is None or control is None or audit_log is None:
        raise ConfigError(
            "of a server that runs, the name of the model, the control file and the audit log have"
            " to be known.",
            hint="Give --name, --control and --audit-log, or the bundle that it serves.",
        )
    check_file_output(Path(control), CONTROL_FILE)
    return name, Path(control), Path(audit_log)


@dataclass(frozen=True)
class _Alone:
    """Answers of the package by itself: what a drill compares with."""

    # Of each recorded run, as it runs here and as function bodies.
    outputs: tuple[tuple[Mapping[str, Array], ...], ...]
    milliseconds: float  # how long a run takes, the median
    description: Description  # what ran it here
    rule: Tolerance  # by which answers are compared

    @classmethod
    def of(cls, model: Deployed, package: OnnxPackage) -> _Alone:
        vectors = package.vectors[:_MOST_CASES]
        with model.open() as here, model.open(Variant(kernels="off")) as bodies:
            outputs = tuple((here.run(v.inputs), bodies.run(v.inputs)) for v in vectors)
            times = []
            for _ in range(9):
                start = time.perf_counter()
                here.run(vectors[0].inputs)
                times.append(1e3 * (time.perf_counter() - start))
            rule = BUILT_IN_POLICY.model_rule(package.manifest.precision, here)
            return cls(outputs, sorted(times)[4], here.describe(), rule)


_OWN_POLICY = "the drill's own, of short cool-downs"
_USUAL_POLICY = "kernels, then function bodies, as the usual one has it"
_OWN_CHAIN = """
rungs:
- {{kind: {first}, name: {first}, p99_ms: {limit_ms:.1f}}}
- {{kind: functions, name: {second}}}
latency: {{min_samples: 20, window_s: 10.0}}
cool_down: {{first_s: 1.0, longest_s: 4.0, stable_s: 0.0}}
probes: 3
spot_checks: 0.1
"""


def _policy(given: Path | str | None, alone: _Alone, folder: Path) -> tuple[GuardPolicy, Path]:
    """Return the policy that is drilled, and its file."""
    if given is not None:
        return read_guard_policy(Path(given)), Path(given).resolve()
    # Without kernels function bodies are the first level, and the second one, too.
    first = "functions" if kernel_library() is None else "kernels"
    second = "functions" if first == "kernels" else "functions-again"
    limit_ms = max(250.0, 20 * alone.milliseconds)
    path = folder / "policy.yaml"
    path.write_text(_OWN_CHAIN.format(first=first, second=second, limit_ms=limit_ms))
    return read_guard_policy(path), path


def _cases(
    package: OnnxPackage, alone: _Alone, policy: GuardPolicy
) -> tuple[targets.LoadCase, ...]:
    """Return the recorded inputs, with the right answers of each level of the policy."""
    found = [
        (vectors.inputs, {level.called: own for level in policy.rungs})
        for vectors, own in zip(package.vectors, alone.outputs, strict=False)
    ]
    for level in policy.rungs:
        if level.path is not None:  # another package, with answers of its own
            with find_deployed(level.path).open() as runner:
                for inputs, right in found:
                    right[level.called] = (runner.run(inputs),)
    return tuple(targets.LoadCase(inputs, right) for inputs, right in found)
