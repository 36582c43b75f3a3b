"""What a decision looks like in words; pages are opened in tests/report/html."""

from dataclasses import replace

import pytest

from moh_deploy.decision.size_break_even import SizeBreakEven, SizedGain, crossings
from moh_deploy.report.document import Section, TradeOffChart
from tests.decision.simulated import REFERENCE, decision_report
from tests.report.json_schema import assert_of_form


def test_decision_stands_first_and_every_alternative_has_its_reason():
    report = decision_report()
    lines = report.to_markdown().splitlines()
    assert lines[0] == "'0' is worth it against 'reference'."
    (open_one,) = [line for line in lines if line.startswith("2: inconclusive: ")]
    assert "rounds would tell, there were 400" in open_one
    verdicts = [line for line in lines if line.startswith("- ")][:2]
    assert [verdict.split(".")[0] for verdict in verdicts] == ["- 0: win", "- 1: loss"]
    assert "Promised: loses at most 1.00 points of top-1; came: 89.75 % to 8" in verdicts[1]
    assert_of_form("compare", report.to_json())


def test_promised_and_measured_stand_side_by_side():
    text = decision_report().to_markdown()
    row, p_values = [line for line in text.splitlines() if line.startswith("| 1 | loses at most")]
    assert "**broken**" in row
    assert text.index(row) < text.index("#### p values") < text.index(p_values)
    assert "at least 10 % faster at p50" in text
    assert "look 1 of 1" in text
    assert decision_report().plan_digest in text


def test_dense_would_do_is_the_first_line():
    report = decision_report((0.0,), (0.0,), dense=frozenset({"0"}), samples=20_000)
    first = report.to_markdown().splitlines()[0]
    assert first.startswith("'0' chooses no heads, and loses no more than the plan allows")
    document = report.document()
    assert document.verdict.word == "DENSE WOULD DO"


def test_chart_draws_all_alternatives_and_what_was_promised():
    (section, *_) = decision_report().document().blocks
    assert isinstance(section, Section)
    (chart,) = [block for block in section.blocks if isinstance(block, TradeOffChart)]
    assert [point.name for point in chart.points] == ["reference", "0", "1", "2"]
    reference = chart.points[0]
    assert chart.x_limit == pytest.approx(0.9 * reference.x)
    assert chart.y_limit == pytest.approx(reference.y - 0.01)
    for point in chart.points:
        assert point.x_interval[0] < point.x < point.x_interval[1]


def test_tiles_are_of_the_winner_or_count_verdicts():
    facts = decision_report().document().facts
    assert [fact.value for fact in facts[:1]] == ["0"]
    lost = decision_report((0.03, 0.03), (0.5, 0.6)).document().facts
    assert [(item.name, item.value) for item in lost] == [
        ("win", "0"),
        ("loss", "2"),
        ("inconclusive", "0"),
    ]


def test_tile_of_a_loss_has_the_unit_of_its_own_metric():
    report = decision_report()
    best = report.arms[1]
    (promise,) = (promise for promise in best.promises if promise.kind == "quality")
    two = (best.quality[0], replace(best.quality[0], metric="perplexity"))
    promises = (promise, replace(promise, estimate=0.3), *best.promises[1:])
    alternatives = (report.arms[0], replace(best, quality=two, promises=promises), *report.arms[2:])
    losses = [
        fact.value
        for fact in replace(report, arms=alternatives).document().facts
        if fact.name == "loss"
    ]
    assert "points" in losses[0]
    assert losses[1] == "0.3"


def test_bound_is_no_winner():
    report = decision_report((0.0,), (0.3,))
    reference, alternative = report.arms
    assert alternative.verdict == "win"
    bound = replace(report, arms=(reference, replace(alternative, is_bound=True)))
    assert bound.headline[0] == "KEEP THE REFERENCE"
    assert "a bound, which cannot be served" in bound.to_markdown()


def test_sizes_from_which_on_an_alternative_pays_are_said_and_so_is_that_one_size_tells_nothing():
    report = decision_report()
    assert "Not known: that takes two sizes of a dimension" in report.to_markdown()
    gains = (SizedGain(1, -0.2, -0.3, -0.1), SizedGain(16, 0.2, 0.1, 0.3))
    one = SizeBreakEven("0", "reference", "batch", {"seq": 5}, gains, tuple(crossings(gains)))
    text = replace(report, break_even=(one,)).to_markdown()
    (row,) = [
        line for line in text.splitlines() if line.startswith("| 0 | reference | batch 1, 16")
    ]
    assert "-20.0 % (-30.0 to -10.0), 20.0 % (10.0 to 30.0)" in row
    assert "faster from batch 3.5 on (" in row
    assert_of_form("compare", replace(report, break_even=(one,)).to_json())


def test_runtimes_are_named_where_alternatives_have_several():
    report = decision_report()
    rows = [line for line in report.to_markdown().splitlines() if "ONNX Runtime 1.32.0" in line]
    assert len(rows) == 1  # a remark on all of them
    other = replace(report.arms[2], runtime="OpenVINO 2026.4.1")
    text = replace(report, arms=(*report.arms[:2], other, *report.arms[3:])).to_markdown()
    assert f"{other.kind}; OpenVINO 2026.4.1 |" in text
    assert text.count("; ONNX Runtime 1.32.0 |") == len(report.arms) - 1


def test_simple_alternative_that_lost_against_a_simple_reference_is_not_what_to_take():
    """`0` is alike to `1`, which chooses heads; both are slower than the reference, or faster."""
    simple = frozenset({REFERENCE, "0"})
    slower = decision_report((0.0, 0.0), (-0.2, -0.2), dense=simple, samples=20_000)
    assert [item.name for item in slower.would_do] == [REFERENCE]
    assert f"'{REFERENCE}' chooses no heads" in slower.decision
    faster = decision_report((0.0, 0.0), (0.2, 0.2), dense=simple, samples=20_000)
    assert [item.name for item in faster.would_do] == ["0"]
    # Against one that chooses heads, a simple alternative need be no faster.
    routed = decision_report((0.0, 0.0), (0.0, 0.2), dense=frozenset({"0", "1"}), samples=20_000)
    assert [item.name for item in routed.would_do] == ["1", "0"]
