"""Requests, faults, drift and the switch in any order: what a guard never does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.guard.fallback_level import FallbackLevel
from moh_deploy.serving.guard.guard import Guard, GuardIO
from moh_deploy.serving.guard.guard_io import AuditLog, RunningMarks
from moh_deploy.serving.guard.policy import CoolDownSection
from moh_deploy.serving.source import Ran
from moh_deploy.system.npz import Array
from tests.handmade_package import write_package
from tests.serving.guard.chains import NAMES, chain_policy

RIGHT = np.ones((1, 2), np.float32)


class ScriptedLevel(FallbackLevel):
    """A level that answers as its fault says."""

    fault = ""

    def open(self) -> None:  # type: ignore[override]
        if self.fault == "missing":
            raise BackendError("it is missing.")

    def run(
        self,
        runner: object,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
    ) -> tuple[dict[str, Array], float]:
        if self.fault == "crash":
            raise BackendError("it crashed.")
        y = np.full_like(RIGHT, np.nan) if self.fault == "nan" else RIGHT
        return {"y": y}, 1.0 if self.fault == "slow" else 0.01


class Script:
    """A guard of three scripted levels, of which the last is for drift."""

    def __init__(self, package: OnnxPackage) -> None:
        self.now = 0.0
        self.inputs = package.vectors[0].inputs
        model = PackageDir(package.root, package)
        cool_down = CoolDownSection(first_s=10.0, longest_s=20.0)
        policy = chain_policy(
            drift_to=2, p99_ms=100.0, min_samples=2, probes=1, cool_down=cool_down
        )
        self.levels = [ScriptedLevel(name, model, None, same_answers=False) for name in NAMES]
        files = AuditLog(None), RunningMarks(None, NAMES)
        self.guard = Guard(model, self.levels, policy, GuardIO(*files, clock=lambda: self.now))

    def step(self, faults: Sequence[str], event: str, waits: bool) -> None:
        for level, fault in zip(self.levels, faults, strict=True):
            level.fault = fault
        if event == "drift":
            self.guard.drifted({})
        elif event:
            self.guard.pin(None if event == "release" else event, "test")
        self.ask()
        self.now += 6 * waits

    def ask(self) -> Ran | None:
        """Ask, and hold the answer against the states before."""
        self.guard.tick()
        pinned = NAMES.index(self.guard.pinned or NAMES[0])
        # The level for drift is the last: while it serves, no other does.
        first = 2 if self.guard.mode == NAMES[2] else pinned
        closed = [i for i in range(first, 3) if self.guard.states[NAMES[i]] == "closed"]
        fit = [i for i in closed if self.levels[i].fault in ("", "slow")]
        try:
            ran = self.guard.run(self.inputs, ("y",), ())
        except BackendError:
            assert not fit, "a request failed that a level could have answered"
            ran = None
        else:
            assert np.array_equal(ran.results["y"], RIGHT), "a wrong answer was given"
            assert NAMES.index(ran.rung) >= pinned, "a level above the pin has answered"
            assert not closed or ran.rung == NAMES[fit[0]], "an unproven level has answered"
        self.guard.wait()
        return ran


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("properties") / "package")


FAULTS = st.sampled_from(["", "nan", "crash", "missing", "slow"])
STEPS = st.tuples(
    st.tuples(FAULTS, FAULTS, FAULTS),
    st.sampled_from(["", "", "", "drift", "release", *NAMES]),
    st.booleans(),
)


@settings(deadline=None)
@given(st.lists(STEPS, min_size=5, max_size=30))
def test_no_order_of_events_lets_a_guard_give_a_wrong_or_an_unproven_answer(
    package: OnnxPackage, steps: list[tuple[tuple[str, str, str], str, bool]]
):
    script = Script(package)
    for step in steps:
        script.step(*step)
    for _ in range(20):
        script.step(("", "", ""), "release", True)
    assert script.ask().rung == NAMES[0]
    assert set(script.guard.states.values()) == {"closed"}
    script.guard.close()
