"""What costs look like in words; pages are opened in tests/report/html."""

from __future__ import annotations

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
