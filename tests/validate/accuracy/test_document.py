from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest

from moh_deploy.report.document import Table
from moh_deploy.report.html.page import Track, page_table
from moh_deploy.validate.accuracy.judge import accuracy_section
from moh_deploy.validate.accuracy.metric_parity import MetricParity
from tests.report.samples import parity_report, with_accuracy


def test_loss_is_drawn_right_of_0_with_the_limit_at_1():
    (passed, _) = with_accuracy(parity_report()).accuracy
    row = _first_row(passed)
    track = cast("Track", row[1])
    interval, dot, limit = track.marks
    at = track.scale.at
    shares = (0.001, 0.01, 0.02)  # gained at best, lost by itself, lost at worst
    places = [at(-shares[0] / 0.0098), at(shares[1] / 0.0098), at(shares[2] / 0.0098)]
    assert [interval.start, dot.start, interval.end] == pytest.approx(places, abs=0.02)
    assert limit.start == at(1.0) < dot.start
    worse_if_higher = replace(passed, better="lower", interval=(-0.001, 0.02), package=0.99)
    row = _first_row(worse_if_higher)
    assert cast("Track", row[1]).marks[1].start == pytest.approx(places[1], abs=0.02)


def _first_row(one: MetricParity) -> Sequence[object]:
    (table,) = (block for block in accuracy_section([one], "").blocks if isinstance(block, Table))
    return page_table(table).rows[0]
