import threading
from dataclasses import dataclass, field

import pytest

from moh_deploy.system.progress import (
    BarProgress,
    LogProgress,
    SilentProgress,
    TerminalProgress,
    bar_for_terminal,
    progress_for_terminal,
    seconds_text,
)


def test_seconds_of_each_step_are_kept_in_order():
    progress = SilentProgress()
    for name in ("trace", "write", "trace"):
        with progress.step(name):
            pass
    with pytest.raises(ZeroDivisionError), progress.step("fail"):
        raise ZeroDivisionError
    assert list(progress.seconds) == ["trace", "write", "fail"]
    assert all(seconds > 0 for seconds in progress.seconds.values())


def test_log_has_no_line_of_a_short_step(capsys: pytest.CaptureFixture[str]):
    progress = progress_for_terminal(quiet=False)
    assert isinstance(progress, LogProgress)
    with progress.step("trace"):
        pass
    assert capsys.readouterr() == ("", "")


def wait_for_timers() -> None:
    for timer in threading.enumerate():
        if isinstance(timer, threading.Timer):
            timer.join()


def test_log_has_one_line_of_a_long_step(capsys: pytest.CaptureFixture[str]):
    with LogProgress(patience_s=0.01).step("tracing the model"):
        wait_for_timers()
    assert capsys.readouterr() == ("", "tracing the model takes more than 0.01 s ...\n")
    with pytest.raises(ZeroDivisionError), LogProgress(patience_s=0.2).step("tracing the model"):
        raise ZeroDivisionError
    wait_for_timers()  # behind a step that failed nothing is written
    assert capsys.readouterr() == ("", "")


def test_terminal_gets_a_spinner_unless_quiet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert isinstance(progress_for_terminal(quiet=False), TerminalProgress)
    assert not isinstance(progress_for_terminal(quiet=True), TerminalProgress)


def test_spinner_names_the_step_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take stderr for a terminal
    with TerminalProgress().step("tracing the model"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert "tracing the model" in err


def test_seconds_are_told_with_their_share():
    assert seconds_text({"trace": 3.0, "write": 1.0}).splitlines() == [
        "    3.00 s   75%  trace",
        "    1.00 s   25%  write",
        "    4.00 s  100%  all steps",
    ]
    assert seconds_text({}) == "    0.00 s    0%  all steps"


# One bar for a job of several phases.


@dataclass
class Screen:
    """Keeps what a bar shows; its clock stands still until it is moved."""

    now: float = 0.0
    shown: list[tuple[float, str, str]] = field(default_factory=list)

    def bar(self, **phases: float) -> BarProgress:
        return BarProgress(phases, lambda *what: self.shown.append(what), clock=lambda: self.now)


def test_bar_goes_from_phase_to_phase_by_their_shares_and_names_steps():
    screen = Screen()
    bar = screen.bar(export=1.0, search=3.0)
    with bar.step("export"), bar.step("tracing"):
        pass
    with bar.step("search"):
        bar.reached(1 / 3, "int8")
    assert screen.shown == [
        (0.0, "export", ""),
        (0.0, "export", "tracing"),
        (0.0, "export", ""),
        (0.25, "export", ""),
        (0.25, "search", ""),
        (0.5, "search", "int8"),
        (1.0, "search", ""),
    ]
    assert list(bar.seconds) == ["export", "tracing", "search"]


def test_time_left_is_as_fast_as_what_was_done_and_not_as_what_was_found():
    screen = Screen()
    bar = screen.bar(export=1.0, search=3.0)
    with bar.step("export"):  # An earlier run did it.
        screen.now += 0.1
    assert bar.left_s() is None
    with bar.step("search"):
        screen.now += 30
        bar.reached(1 / 3, "int8")
        assert bar.left_s() == pytest.approx(60)
        screen.now += 20
        assert bar.left_s() == pytest.approx(40)
        screen.now += 60
        assert bar.left_s() == 0


def test_bar_is_on_stderr_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with bar_for_terminal({"searching": 1.0}) as progress:
        assert isinstance(progress, LogProgress)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with bar_for_terminal({"searching": 1.0}) as progress, progress.step("searching"):
        progress.reached(0.5, "int8 [in] ONNX Runtime")
    out, err = capsys.readouterr()
    assert out == ""
    assert "searching" in err
