"""What costs look like in words; pages are opened in tests/report/html."""

from __future__ import annotations

import pytest

from moh_deploy.report.charts import TornadoChart
from moh_deploy.report.document import Section
from tests.decision.cost.reports import cost_report
from tests.report.json_schema import assert_of_form


def test_answer_stands_first_and_sizes_where_an_arm_is_slower_are_named():
    report = cost_report()
    text = report.to_markdown()
    assert text.splitlines()[0] == report.headline[1]
    assert "'moh' is faster for 50 % of requests, slower for 50 % (batch=8)." in text
    either = cost_report(paired=0.05).to_markdown()
    assert "'moh' is faster for 50 % of requests, slower for 0 %; of 50 % it cannot" in either
    assert "A month is extrapolated from 2 days" in text
    assert "that c7i.2xlarge is as fast is taken for granted" in text
    assert_of_form("cost", report.to_json())
    assert "'moh' against 'dense': slower from batch 7.2 on (6 to 8)." in text


def test_chart_and_table_hold_the_same_inputs():
    report = cost_report()
    sections = [one for one in report.document().blocks if isinstance(one, Section)]
    (section,) = [one for one in sections if one.title == "What it depends on"]
    chart, table = section.blocks
    assert isinstance(chart, TornadoChart)
    assert [one.name for one in chart.bars] == [row[0] for row in table.rows]  # type: ignore[union-attr]
    assert report.best is not None
    assert report.best.net is not None
    assert chart.value == pytest.approx(report.best.net.value)
