import time

import pytest

from moh_deploy.serving.process_health import LimitedLog, RunsUnderWay


def test_runs_that_last_too_long_are_counted_until_they_end():
    now = [0.0]
    runs = RunsUnderWay(2, hung_s=10.0, clock=lambda: now[0])
    runs.begins(0)
    now[0] = 9.0
    runs.begins(1)
    assert (runs.hung(), runs.are_all_hung) == (0, False)
    now[0] = 11.0
    assert (runs.hung(), runs.are_all_hung) == (1, False)
    (family,) = runs.families()
    assert (family.name, family.samples[0].value) == ("moh_hung_runs", 1)
    now[0] = 20.0
    assert (runs.hung(), runs.are_all_hung, runs.hung(2)) == (2, True, 0)
    now[0] = 20.5
    assert runs.hung(2) == 1
    # The next run of an instance is another one.
    runs.begins(0)
    runs.ends(1)
    assert (runs.hung(), runs.hung(2)) == (0, 0)


# Entries beyond the limit are counted, and the next entry or the end says how many.


SHOWN = ["error: 0", "error: 1", "error: 2"]


def test_next_period_and_the_end_say_what_was_left_out(capsys, monkeypatch):
    log = LimitedLog(most=3, period_s=60.0)
    for now, left_out in ((1000.0, 97), (1060.0, 1)):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        for number in range(3 + left_out):
            log.write(f"error: {number}\n")
    log.close()
    log.close()
    assert capsys.readouterr().err.splitlines() == [
        *SHOWN,
        "warning: 97 more errors within 60 s were not shown.",
        *SHOWN,
        "warning: 1 more errors within 60 s were not shown.",
    ]


def test_few_entries_are_written_without_a_word_more(capsys: pytest.CaptureFixture[str]):
    log = LimitedLog(most=3, period_s=0.0)
    for _ in range(9):
        log.write("error: a\n  hint: b\n")
    log.close()
    assert capsys.readouterr().err == 9 * "error: a\n  hint: b\n"
