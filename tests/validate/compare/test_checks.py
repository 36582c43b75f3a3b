from __future__ import annotations

from moh_deploy.validate.compare.checks import Flips, check_flips
from moh_deploy.validate.compare.policy import FlipsCondition, parse_condition


def test_flips_are_judged_by_the_condition():
    for condition, flips, verdict in (
        ("flips <= 2", Flips(2, 9), "passed"),
        ("flips <= 2", Flips(3, 9), "failed"),
        ("flips <= 10 %", Flips(10, 100), "passed"),
        ("flips <= 10 %", Flips(11, 100), "failed"),
        ("flips <= 2", None, "cannot tell"),
    ):
        asked = parse_condition(condition)
        assert isinstance(asked, FlipsCondition)
        (check,) = check_flips(flips, [asked])
        assert (check.name, check.verdict, check.asked) == (condition, verdict, True)
        assert (check.reason is None) is (verdict == "passed")
