"""Entries beyond the limit are counted, and the count is written when the period ends."""

from __future__ import annotations

import time

import pytest

from moh_deploy.serving.limited_log import LimitedLog

PERIOD_S, LONG_S = 0.05, 5.0


def lines_after_a_period(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text, ends = capsys.readouterr().err, time.monotonic() + LONG_S
    while "not shown" not in text and time.monotonic() < ends:
        time.sleep(0.001)
        text += capsys.readouterr().err
    return text.splitlines()


def test_what_is_left_out_is_counted(capsys: pytest.CaptureFixture[str]):
    log = LimitedLog(most=3, period_s=PERIOD_S)
    # The next period begins anew.
    for left_out in (97, 1):
        for number in range(3 + left_out):
            log.write(f"error: {number}\n")
        assert lines_after_a_period(capsys) == [
            *("error: 0", "error: 1", "error: 2"),
            f"warning: {left_out} more errors in the last 0.05 s are not shown.",
        ]


def test_few_entries_are_written_without_a_word_more(capsys: pytest.CaptureFixture[str]):
    log = LimitedLog(most=3, period_s=PERIOD_S)
    for _ in range(3):
        log.write("error: a\n  hint: b\n")
    time.sleep(2 * PERIOD_S)
    assert capsys.readouterr().err == 3 * "error: a\n  hint: b\n"
