"""Guards over the function bodies of a small package, in which any level can be made to fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.guard.fallback_level import FallbackLevel
from moh_deploy.serving.guard.guard import Guard, GuardIO
from moh_deploy.serving.guard.guard_io import AuditLog, ControlFile, Fault, Faults, RunningMarks
from moh_deploy.serving.guard.policy import (
    CoolDownSection,
    DriftSection,
    FaultSection,
    GuardPolicy,
    LatencySection,
    LevelSection,
    MeasuredLoss,
)
from moh_deploy.serving.source import Ran
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.layer_values import names_to_return

NAMES = ("kernels", "functions", "third")
COOL_DOWN = CoolDownSection(first_s=10.0)


def chain_policy(
    levels: int = 3,
    *,
    drift_to: int | None = None,
    p99_ms: float | None = None,
    faults: int = 1,
    min_samples: int = 200,
    **sections: object,
) -> GuardPolicy:
    """Return the policy of a chain. The level for drift is another package."""
    other = {"path": Path("other"), "measured_loss": MeasuredLoss(report=Path("report.json"))}
    rungs = [
        LevelSection(kind="package", name=name, p99_ms=p99_ms, **other)
        if index == drift_to
        else LevelSection(kind="functions", name=name, p99_ms=p99_ms)
        for index, name in enumerate(NAMES[:levels])
    ]
    drift = None if drift_to is None else DriftSection(rung=NAMES[drift_to])
    latency = LatencySection(min_samples=min_samples)
    return GuardPolicy(
        rungs=rungs, drift=drift, latency=latency, faults=FaultSection(count=faults), **sections
    )


@dataclass
class TriedChain:
    """A guard of two or three levels, a clock that is turned by hand, and faults for each level."""

    package: OnnxPackage
    folder: Path
    levels: int = 2
    spot_checks: float = 0.0
    drift_to: int | None = None
    control: bool = False
    drill: bool = True
    p99_ms: float | None = None
    min_samples: int = 200
    probes: int = 2
    cool_down: CoolDownSection = COOL_DOWN
    now: float = 0.0
    faults: list[Faults] = field(default_factory=list)

    def __post_init__(self) -> None:
        package = self.package
        policy = chain_policy(
            self.levels,
            drift_to=self.drift_to,
            p99_ms=self.p99_ms,
            min_samples=self.min_samples,
            probes=self.probes,
            cool_down=self.cool_down,
        ).model_copy(update={"spot_checks": self.spot_checks})
        self.faults = [Faults(("y",), package.gate_names) for _ in policy.names]
        model = PackageDir(package.root, package)
        variant = Variant(kernels="off", threads=1, extra_outputs=names_to_return(package))
        levels = [
            FallbackLevel(name, model, variant, faults=faults)
            for name, faults in zip(policy.names, self.faults, strict=True)
        ]
        for level in levels:  # as at the start of a server, where nothing is planted yet
            level.open()
        drilled = self.faults[0] if self.drill else None
        self.guard = Guard(
            model,
            levels,
            policy,
            GuardIO(
                AuditLog(self.log),
                RunningMarks(self.log, policy.names),
                ControlFile(self.control_file, policy.names, drilled) if self.control else None,
                clock=lambda: self.now,
            ),
        )

    @property
    def log(self) -> Path:
        return self.folder / "audit.jsonl"

    @property
    def control_file(self) -> Path:
        return self.folder / "control.json"

    def plant(self, level: int, *faults: Fault) -> None:
        self.faults[level].planted = frozenset(faults)

    def ask(self, x: Array | None = None, wait_s: float = 1.0) -> Ran:
        """Ask the guard for the recorded inputs, and let time go by."""
        inputs = dict(self.package.vectors[0].inputs)
        if x is not None:
            inputs["x"] = x
        ran = self.guard.run(inputs, ("y",), ())
        self.guard.wait()
        self.now += wait_s
        return ran

    def until(self, is_so: Callable[[], bool], most: int = 60) -> int:
        """Ask until something is so, and return how often that took."""
        for times in range(1, most):
            self.ask()
            if is_so():
                return times
        raise AssertionError("it never was")

    def count(self, family: str, **labels: str) -> float:
        """Return the value of a metric."""
        (found,) = [each for each in self.guard.families() if each.name == family]
        return sum(s.value for s in found.samples if labels.items() <= dict(s.labels).items())
