"""What a page draws of time is what was measured or predicted; a browser looks at it elsewhere."""

from dataclasses import replace

import pytest

from moh_deploy.perf.time_drawings import (
    measured_times,
    model_speeds,
    predicted_times,
    speed_section,
)
from moh_deploy.report.document import Drawn, Section, Share, Table, Text
from tests.handmade_package import LAYER, MANIFEST
from tests.perf.test_choices_text import DENSE_WINS, MEASURED, SPARSE_WINS
from tests.report.layer_samples import tuned


def parts(section: Section) -> tuple[str, Table]:
    text, table = section.blocks
    assert isinstance(text, Text)
    assert isinstance(table, Table)
    return text.text, table


def test_measured_times_are_means_as_inputs_weigh_in_the_mode_of_each_size():
    (section,) = measured_times([replace(LAYER, choice="sparse")], MEASURED)
    text, table = parts(section)
    assert "as measured at batch=2, seq=3; batch=2, seq=1 (CPU time, 1 thread" in text
    row, total = table.rows
    # (2 + 2 * 0.2) / 3 as chosen, (4 + 2 * 0.1) / 3 dense.
    drawn = row[2]
    assert isinstance(drawn, Drawn)
    assert (drawn.value, drawn.limit) == pytest.approx((0.8, 1.4))
    assert not drawn.is_bad
    assert row[3:5] == pytest.approx(total[3:5])
    assert row[5] == Share(1.0)


def test_predicted_times_say_so_and_what_is_slower_than_dense_is_marked():
    layers = (replace(LAYER, choice="sparse"), replace(LAYER, path="other", choice="dense"))
    manifest = replace(MANIFEST, layers=layers)
    (section,) = predicted_times(manifest, [DENSE_WINS, SPARSE_WINS])
    text, table = parts(section)
    assert "as predicted for one thread" in text
    slow, dense, total = table.rows
    assert [row[2].is_bad for row in (slow, dense)] == [True, False]
    assert [row[3] for row in table.rows] == [1.25, 1.5, 2.75]
    assert [row[4] for row in table.rows] == [1.0, 1.5, 2.5]
    assert slow[5] == Share(1.25 / 2.75)
    assert total[2] is None


def test_time_that_nothing_is_known_of_is_not_drawn():
    assert list(measured_times([LAYER], replace(MEASURED, layer_ms=()))) == []
    assert list(predicted_times(MANIFEST, [None])) == []
    assert list(speed_section(None)) == []
    assert list(model_speeds(MEASURED, ())) == []


def test_whole_model_is_drawn_at_each_size_with_its_interval():
    report = tuned()
    (table,) = model_speeds(report.tuning, report.model_ratios)
    faster, slower = (row[2] for row in table.rows)
    assert (faster.value, faster.interval) == (1 / 0.8, (1 / 0.83, 1 / 0.78))
    assert [faster.is_bad, slower.is_bad] == [False, True]
