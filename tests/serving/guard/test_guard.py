from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.serving.guard import fallback_level
from moh_deploy.serving.guard import guard_io as guard_files
from moh_deploy.serving.guard.faults import Fault
from moh_deploy.serving.guard.guard_io import Control, write_control
from moh_deploy.serving.guard.policy import CoolDownSection
from tests.handmade_package import write_package
from tests.nightly import nightly, sampled
from tests.serving.guard.chains import TriedChain

Make = Callable[..., TriedChain]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("guard") / "package")


@pytest.fixture
def make(package: OnnxPackage, tmp_path: Path) -> Iterator[Make]:
    made = []

    def new(**options: object) -> TriedChain:
        made.append(TriedChain(package, tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for one in made:
        one.guard.close()


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
    assert [(one["from"], one["to"], one["reason"]) for one in audit(chain)] == [
        ("kernels", "functions", reason),
        ("functions", "functions", "cool-down is over"),
        ("functions", "kernels", "probes passed"),
    ]
    assert chain.count("moh_fallback_requests_total", reason=reason, rung="functions") >= 10
    assert chain.count("moh_guard_transitions_total", reason=reason) == 1


def test_a_fault_that_stays_is_never_served_and_tried_less_and_less_often(make: Make):
    chain = make()
    chain.plant(0, "nan")
    for _ in range(100):
        assert is_right(chain, chain.ask().results["y"])
    opened = [one["evidence"]["cool_down_s"] for one in audit(chain) if one["state"] == "open"]
    assert opened == [10, 20, 40, 80]


def test_where_the_second_rung_fails_too_the_third_answers(make: Make):
    chain = make(levels=3)
    chain.plant(0, "nan")
    chain.plant(1, "crash")
    assert chain.ask().rung == "third"
    assert chain.guard.states == {"kernels": "open", "functions": "open", "third": "closed"}


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


def test_what_is_wrong_with_the_inputs_is_no_fault_of_a_rung(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
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


def test_without_spot_checks_nothing_finds_it(make: Make):
    chain = make()
    chain.plant(0, "wrong")
    for _ in range(5):
        chain.ask()
    assert chain.guard.mode == "kernels"


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
    wrong = [one for one in audit(chain) if one["reason"] == "wrong known answer"]
    assert [one["state"] for one in wrong] == ["open"] * len(wrong)
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


def test_the_switch_and_alarms_move_the_chain(make: Make):
    chain = make(levels=3, drift_to=2)
    chain.guard.pin("functions", "operator")
    assert chain.ask().rung == "functions"
    chain.guard.pin(None, "operator")
    assert chain.ask().rung == "kernels"
    chain.guard.drifted({"layer": "blocks.0.attn"})
    assert chain.ask().rung == "third"
    assert chain.until(lambda: chain.guard.mode == "kernels") >= 8
    with pytest.raises(
        ConfigError, match="no fallback level 'fast', expected one of kernels, functions"
    ):
        chain.guard.pin("fast", "operator")


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


def test_a_control_file_whose_permissions_change_is_read_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
):
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
    for one in clients:
        one.start()
    for _ in range(30):
        for fault in ("nan", "crash", "gates"):
            chain.plant(0, fault)
            ends.wait(0.01)
            chain.plant(0)
            ends.wait(0.01)
    ends.set()
    for one in clients:
        one.join()
    assert not wrong
    assert chain.count("moh_guard_transitions_total") >= 2
