"""Where contestants lie by time and quality; tests in the browser see them drawn."""

from __future__ import annotations

import pytest

from moh_deploy.report.document import TradeOffChart, TradeOffPoint
from moh_deploy.report.html.time_charts import page_trade_off


def chart(*points: tuple[float, float], **changes: object) -> TradeOffChart:
    made = tuple(TradeOffPoint(str(place), "", *one) for place, one in enumerate(points))
    return TradeOffChart("t", "ms", "top-1", made, **changes)


def test_up_is_better_and_left_is_faster():
    low, high = page_trade_off(chart((2.0, 0.8), (4.0, 0.9))).points
    assert low.x < high.x
    assert low.y > high.y
    low, high = page_trade_off(chart((2.0, 0.8), (4.0, 0.9), lower_is_better=True)).points
    assert low.y < high.y


def test_times_that_are_ratios_apart_lie_by_their_ratios():
    first, second, third = page_trade_off(chart((1.0, 0.8), (10.0, 0.8), (100.0, 0.8))).points
    assert second.x - first.x == pytest.approx(third.x - second.x, abs=0.05)
    first, second, third = page_trade_off(chart((1.0, 0.8), (2.0, 0.8), (3.0, 0.8))).points
    assert second.x - first.x == pytest.approx(third.x - second.x, abs=0.05)


def test_what_is_promised_is_on_the_axes_whatever_the_points_are():
    laid_out = page_trade_off(chart((2.0, 0.8), x_limit=1.0, y_limit=0.5))
    assert laid_out.x_limit is not None
    assert laid_out.y_limit is not None
    assert 0 < laid_out.x_limit < laid_out.points[0].x < 100
    assert laid_out.points[0].y < laid_out.y_limit < 100


def test_shares_are_in_percent():
    labels = [
        one.label for one in page_trade_off(chart((1, 0.5), (2, 1.0), y_is_share=True)).y_ticks
    ]
    assert "60 %" in labels
    labels = [one.label for one in page_trade_off(chart((1, 0.5), (2, 1.0))).y_ticks]
    assert "0.6" in labels


def test_one_point_has_room_around_it():
    (only,) = page_trade_off(chart((2.0, 0.8))).points
    assert 10 < only.x < 90
    assert 10 < only.y < 80
