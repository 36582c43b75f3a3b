from __future__ import annotations

import pytest

from moh_deploy.report.charts import TornadoBar, TornadoChart
from moh_deploy.report.html.tornado_chart import page_tornado


def chart(value: float, *ends: tuple[float, float]) -> TornadoChart:
    bars = tuple(TornadoBar(str(index), "1 to 2", *one) for index, one in enumerate(ends))
    return TornadoChart("title", "USD", value, bars)


def test_bars_reach_from_the_answer_to_both_ends():
    page = page_tornado(chart(10.0, (-10.0, 30.0), (15.0, 5.0)))
    assert page.value == pytest.approx(50.0)
    first, second = page.bars
    assert (first.low.x + first.low.width, first.high.x) == pytest.approx((50.0, 50.0))
    assert first.low.width == pytest.approx(first.high.width, abs=0.02)
    assert second.high.x < second.low.x == page.value
    assert second.low.width == pytest.approx(first.low.width / 4, abs=0.02)
    assert page.zero == pytest.approx(50 - first.low.width / 2, abs=0.02)


def test_zero_is_drawn_only_where_the_axis_reaches_it():
    assert page_tornado(chart(10.0, (8.0, 12.0))).zero is None
    same = page_tornado(chart(0.0, (0.0, 0.0)))
    assert same.bars[0].low.width == 0
