"""Guards over the function bodies of a small package, in which any rung can be made to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.guard.answer_check import AnswerCheck
from moh_deploy.serving.guard.audit import AuditLog
from moh_deploy.serving.guard.breaker import BreakerLimits
from moh_deploy.serving.guard.control import ControlFile
from moh_deploy.serving.guard.faults import Fault, Faults
from moh_deploy.serving.guard.guard import Guard, Hands, Watched
from moh_deploy.serving.guard.ladder import Rung, RungModel
from moh_deploy.serving.guard.ladder_state import LadderState
from moh_deploy.serving.guard.running_marks import RunningMarks
from moh_deploy.serving.source import Ran
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.layer_values import layer_values, names_to_return

LIMITS = BreakerLimits(cool_down_s=10, probes=2)


@dataclass
class TriedLadder:
    """A guard of two rungs or three, a clock that is turned by hand, and a fault for each rung."""

    package: OnnxPackage
    folder: Path
    rungs: int = 2
    spot_checks: float = 0.0
    drift_to: int | None = None
    control: bool = False
    drill: bool = True
    limits: BreakerLimits = LIMITS
    now: float = 0.0
    faults: list[Faults] = field(default_factory=list)

    def __post_init__(self) -> None:
        package, names = self.package, ["kernels", "functions", "third"][: self.rungs]
        self.faults = [Faults() for _ in names]
        gates = package.gate_names
        model = PackageDir(package.root, package)
        variant = Variant(kernels="off", threads=1, extra_outputs=names_to_return(package))
        check = AnswerCheck.of(["y"], gates, package.vectors, has_samples=True)
        rungs = [
            Rung(RungModel(name, model, variant, ("y",), same_answers=True), gates, faults)
            for name, faults in zip(names, self.faults, strict=True)
        ]
        for rung in rungs:  # as at the start of a server, where nothing is planted yet
            rung.open()
        self.guard = Guard(
            rungs,
            LadderState(names, [self.limits] * len(names), self.drift_to),
            Watched(check, gates, package, layer_values(package)),
            Hands(
                AuditLog(self.log),
                RunningMarks(self.log, names),
                ControlFile(self.control_file) if self.control else None,
                self.faults[0] if self.drill else None,
                self.spot_checks,
                clock=lambda: self.now,
                wall_clock=lambda: 1e9 + self.now,
            ),
        )

    @property
    def log(self) -> Path:
        return self.folder / "audit.jsonl"

    @property
    def control_file(self) -> Path:
        return self.folder / "control.json"

    def plant(self, rung: int, *faults: Fault) -> None:
        self.faults[rung].plant(frozenset(faults))

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
        (found,) = [one for one in self.guard.families() if one.name == family]
        return sum(s.value for s in found.samples if labels.items() <= dict(s.labels).items())
