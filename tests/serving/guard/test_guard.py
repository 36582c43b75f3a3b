import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.guard import fallback_level
from moh_deploy.serving.guard import guard_io as guard_files
from moh_deploy.serving.guard.fallback_level import FallbackLevel
from moh_deploy.serving.guard.guard import Guard, GuardIO
from moh_deploy.serving.guard.guard_io import AuditLog, Control, Fault, RunningMarks, write_control
from moh_deploy.serving.guard.policy import CoolDownSection
from moh_deploy.serving.source import Ran
from moh_deploy.system.npz import Array
from tests.nightly import nightly, sampled
from tests.serving.guard.chains import NAMES, TriedChain, chain_policy

Make = Callable[..., TriedChain]


@pytest.fixture
def make(package: OnnxPackage, tmp_path: Path) -> Iterator[Make]:
    made = []

    def new(**options: object) -> TriedChain:
        made.append(TriedChain(package, tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for item in made:
        item.guard.close()


def is_right(chain: TriedChain, y: np.ndarray) -> bool:
    return np.allclose(y, chain.package.vectors[0].outputs["y"], rtol=1e-5, atol=1e-6)


def test_empty_input_that_no_level_takes_is_the_clients_fault(make: Make):
    chain = make()
    for level in range(2):
        chain.plant(level, "crash")
    x = chain.package.vectors[0].inputs["x"]
    with pytest.raises(ConfigError):
        chain.ask(x[:, :0])
    assert chain.count("moh_refused_requests_total") == 0
    with pytest.raises(BackendError):
        chain.ask(x)
    assert chain.count("moh_refused_requests_total") == 1


def audit(chain: TriedChain) -> list[dict[str, object]]:
    return [json.loads(line) for line in chain.log.read_text().splitlines()]


@sampled(2)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "non-finite outputs"),
        ("gates", "non-finite gates"),
        ("crash", "kernel error"),
        ("missing-library", "cannot be opened"),
    ],
)
def test_a_fault_is_answered_by_the_rung_below_at_once_and_the_first_returns_after_it(
    make: Make, fault: Fault, reason: str
):
    chain = make()
    assert chain.ask().rung == "kernels"
    chain.plant(0, fault)
    ran = chain.ask()
    assert ran.rung == "functions"
    assert is_right(chain, ran.results["y"])
    assert chain.guard.mode == "functions"
    chain.plant(0)
    assert chain.until(lambda: chain.guard.mode == "kernels") >= 10
    assert is_right(chain, chain.ask().results["y"])
    assert [(line["from"], line["to"], line["reason"]) for line in audit(chain)] == [
        ("kernels", "functions", reason),
        ("functions", "functions", "cool-down is over"),
        ("functions", "kernels", "probes passed"),
    ]
    assert chain.count("moh_fallback_requests_total", reason=reason, rung="functions") >= 10
    assert chain.count("moh_guard_transitions_total", reason=reason) == 1


def test_what_no_rung_answers_rightly_is_an_error_and_no_rung_is_blamed(make: Make):
    chain = make()
    chain.plant(0, "nan")
    chain.plant(1, "nan")
    for _ in range(3):
        with pytest.raises(BackendError, match="not finite: non-finite outputs in 'y'"):
            chain.ask()
    assert set(chain.guard.states.values()) == {"closed"}
    assert chain.count("moh_refused_requests_total") == 3
    assert not chain.log.read_text()


def test_requests_that_were_joined_are_not_refused_before_each_ran_alone(make: Make):
    chain = make()
    chain.plant(0, "nan")
    chain.plant(1, "nan")
    with pytest.raises(BackendError, match="not finite"):
        chain.guard.run(chain.package.vectors[0].inputs, ("y",), (), 2)
    assert chain.count("moh_refused_requests_total") == 0


def test_what_is_wrong_with_the_inputs_is_no_fault_of_a_rung(make: Make, monkeypatch):
    def refuses(*_: object) -> None:
        raise ConfigError("input 'ids' is 99 at [0, 1], expected 0 to 9.")

    chain = make()
    with monkeypatch.context() as patched:
        patched.setattr("moh_deploy.serving.guard.fallback_level.FallbackLevel.run", refuses)
        with pytest.raises(ConfigError, match="'ids' is 99"):
            chain.ask()
    assert chain.ask().rung == "kernels"
    assert chain.count("moh_refused_requests_total") == 0
    assert chain.count("moh_fallback_requests_total") == 0


def test_a_sample_that_nobody_can_answer_does_not_hide_a_fault(make: Make):
    chain = make()
    x = np.array(chain.package.vectors[0].inputs["x"])
    x[0] = 3e38  # finite, and beyond what the model can compute with
    with np.errstate(over="ignore"), pytest.raises(BackendError, match="not finite"):
        chain.ask(x)
    assert chain.guard.mode == "kernels"
    chain.plant(0, "nan")
    with np.errstate(over="ignore"), pytest.raises(BackendError, match="not finite"):
        chain.ask(x)
    assert chain.guard.mode == "functions"


def test_nan_of_a_client_is_answered_with_nan_and_judged_in_the_other_samples_only(make: Make):
    chain = make()
    x = np.array(chain.package.vectors[0].inputs["x"])
    x[0] = np.nan
    assert np.isnan(chain.ask(x).results["y"][0]).all()
    assert chain.guard.mode == "kernels"
    chain.plant(0, "nan")
    ran = chain.ask(x)
    assert ran.rung == "functions"
    assert np.isfinite(ran.results["y"][1]).all()


def test_slow_runs_open_the_rung(make: Make):
    chain = make(p99_ms=200.0, min_samples=3)
    chain.plant(0, "slow")
    assert chain.until(lambda: chain.guard.mode == "functions") == 3
    assert audit(chain)[0]["reason"] == "latency"


def test_a_spot_check_finds_what_is_wrong_and_finite(make: Make):
    chain = make(spot_checks=1.0)
    chain.ask()
    chain.plant(0, "wrong")
    assert not is_right(chain, chain.ask().results["y"])  # nothing told it from a right one
    assert chain.guard.mode == "functions"
    assert is_right(chain, chain.ask().results["y"])
    first = audit(chain)[0]
    assert first["reason"] == "other answers"
    assert "output 'y'" in first["evidence"]["why"]


def test_a_client_that_sends_nan_moves_nothing(make: Make):
    chain = make(spot_checks=1.0)
    x = np.full_like(chain.package.vectors[0].inputs["x"], np.nan)
    assert np.isnan(chain.ask(x).results["y"]).all()
    assert (chain.guard.mode, chain.count("moh_guard_comparisons_total")) == ("kernels", 0)


@pytest.mark.parametrize("opened_by", ["nan", "slow"])
def test_a_rung_whose_known_answer_is_wrong_stays_closed_until_it_is_right(
    make: Make, capsys: pytest.CaptureFixture[str], opened_by: Fault
):
    chain = make(p99_ms=200.0, min_samples=1)
    chain.plant(0, opened_by)
    chain.until(lambda: chain.guard.mode == "functions")
    chain.plant(0, "wrong")
    for _ in range(30):
        assert is_right(chain, chain.ask().results["y"])
    assert chain.guard.mode == "functions"
    wrong = [line for line in audit(chain) if line["reason"] == "wrong known answer"]
    assert [item["state"] for item in wrong] == ["open"] * len(wrong)
    assert chain.count("moh_guard_comparisons_total", kind="known answer") == len(wrong) >= 1
    sentence = "answers a recorded run wrongly, so it is not served: output 'y' of vectors 0"
    assert sentence in wrong[0]["evidence"]["error"]
    assert "warning: fallback level 'kernels' cannot serve: package" in capsys.readouterr().err
    chain.plant(0)
    chain.until(lambda: chain.guard.mode == "kernels")


def test_a_rung_that_answers_otherwise_does_not_return(make: Make, monkeypatch: pytest.MonkeyPatch):
    chain = make()
    chain.plant(0, "nan")
    chain.ask()
    chain.plant(0, "wrong")
    # As if only other inputs than the recorded ones showed the fault.
    monkeypatch.setattr(fallback_level, "require_known_answer", lambda *_: None)
    for _ in range(30):
        assert is_right(chain, chain.ask().results["y"])
    assert chain.guard.mode == "functions"
    assert chain.count("moh_guard_comparisons_total", kind="probe", outcome="other") >= 1


def test_the_control_file_switches_alarms_and_plants(make: Make):
    chain = make(levels=3, drift_to=2, control=True)
    for said, rung in (
        (Control(pin="functions"), "functions"),
        (Control(drift="head load of blocks.0.attn"), "third"),
        (Control(faults=("drift",)), "third"),
    ):
        write_control(chain.control_file, said)
        assert chain.ask().rung == rung
    chain.control_file.unlink()
    chain.until(lambda: chain.guard.mode == "kernels")
    write_control(chain.control_file, Control(faults=("nan",)))
    assert is_right(chain, chain.ask().results["y"])
    assert chain.guard.mode == "functions"


def test_an_alarm_in_the_control_file_does_not_release_a_pin_of_another_hand(make: Make):
    chain = make(control=True)
    chain.guard.pin("functions", "http")
    write_control(chain.control_file, Control(drift="watch has alarmed"))
    assert chain.ask().rung == "functions"
    write_control(chain.control_file, Control(pin="kernels"))
    assert chain.ask().rung == "kernels"


def test_a_server_that_was_not_started_for_a_drill_plants_nothing(make: Make):
    chain = make(control=True, drill=False)
    write_control(chain.control_file, Control(faults=("nan", "drift")))
    assert chain.ask().rung == "kernels"
    (line,) = audit(chain)
    assert line["reason"] == "control file"
    assert "not started for a drill" in line["evidence"]["error"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"pin": "fast"}',
            "'fast', which is no fallback level; expected one of kernels, functions",
        ),
        ("{", "is not valid JSON"),
        ('{"faults": ["fire"]}', "faults.0 is 'fire': input should be 'nan'"),
        ('{"pins": null}', "pins is not a known key. Did you mean 'pin'?"),
    ],
)
def test_a_control_file_that_is_wrong_is_said_and_changes_nothing(
    make: Make, text: str, problem: str, capsys: pytest.CaptureFixture[str]
):
    chain = make(control=True)
    chain.control_file.write_text(text)
    assert chain.ask().rung == "kernels"
    (line,) = audit(chain)
    assert line["reason"] == "control file"
    assert problem in line["evidence"]["error"]
    assert problem in capsys.readouterr().err


def test_a_control_file_that_cannot_be_looked_at_is_said_once(make: Make):
    chain = make(control=True)
    write_control(chain.control_file, Control(pin="functions"))
    assert chain.ask().rung == "functions"
    chain.control_file.unlink()
    chain.control_file.symlink_to(chain.control_file)  # without an end
    for _ in range(3):
        assert chain.ask().rung == "functions"
    said = [line for line in audit(chain) if line["reason"] == "control file"]
    assert len(said) == 1
    assert "cannot be read: Too many levels of symbolic links" in said[0]["evidence"]["error"]
    chain.control_file.unlink()
    assert chain.ask().rung == "kernels"


def test_a_control_file_whose_permissions_change_is_read_again(make: Make, monkeypatch):
    chain = make(control=True)
    write_control(chain.control_file, Control(pin="functions"))

    def refuse(path: Path, **_: object) -> bytes:
        raise ConfigError(f"{path} cannot be read: Permission denied.")

    with monkeypatch.context() as patched:
        patched.setattr(guard_files, "read_bytes", refuse)
        assert chain.ask().rung == "kernels"
    chain.control_file.chmod(0o644 if chain.control_file.stat().st_mode & 0o44 == 0 else 0o600)
    assert chain.ask().rung == "functions"


@nightly
def test_no_answer_is_wrong_under_threads_while_faults_come_and_go(make: Make):
    chain = make(cool_down=CoolDownSection(first_s=0.01, longest_s=0.02), probes=1)
    wrong, inputs = [], chain.package.vectors[0].inputs
    ends = threading.Event()

    def client() -> None:
        while not ends.is_set():
            y = chain.guard.run(inputs, ("y",), ()).results["y"]
            chain.now += 1e-3
            if not is_right(chain, y):
                wrong.append(y)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for item in clients:
        item.start()
    for _ in range(30):
        for fault in ("nan", "crash", "gates"):
            chain.plant(0, fault)
            ends.wait(0.01)
            chain.plant(0)
            ends.wait(0.01)
    ends.set()
    for item in clients:
        item.join()
    assert not wrong
    assert chain.count("moh_guard_transitions_total") >= 2


# Requests, faults, drift and the switch in any order: what a guard never does.


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
