"""Windows of live traffic, judged by a reference."""

from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.serving.drift.judge import LiveCounts, WindowVerdict, judge_window
from moh_deploy.serving.drift.reference import RoutingReference, profile_of
from moh_deploy.serving.telemetry.routing import Counts
from tests.serving.drift.traffic import LAYOUT, SHARED, requests, window

FIRST, SECOND = LAYOUT.columns


@pytest.fixture(scope="module")
def reference() -> RoutingReference:
    return profile_of(window(requests(400, seed=0)), window=64, rate=0.01)


def judged(
    reference: RoutingReference, totals: Counts, count: int = 128, **more: bool
) -> WindowVerdict:
    return judge_window(reference, LiveCounts(totals, count, 0.0, 60.0, **more))


def live(**settings: object) -> Counts:
    return requests(128, seed=5, **settings).sum(axis=0)  # type: ignore[arg-type]


def test_unchanged_traffic_raises_no_alarm(reference: RoutingReference):
    found = judged(reference, live())
    assert found.alarms == ()
    assert found.limits_of == 128
    assert found.ratio is not None
    assert 0 < found.ratio < 1


def test_shifted_traffic_names_the_layer_the_heads_and_how_far(reference: RoutingReference):
    found = judged(reference, live(liked=(-0.5, 0.0, 0.5, 1.0)))
    assert len(found.alarms) == 2
    assert found.alarms[0].startswith("blocks.0: choices of heads moved by 0.")
    assert f"head {SHARED} is on for" in found.alarms[0]
    assert "of the tokens, was for" in found.alarms[0]


def test_dead_and_always_open_heads_are_named(reference: RoutingReference):
    totals = live()
    tokens = totals[SECOND.tokens]
    totals[SECOND.on.start], totals[SECOND.on.start + 1] = 0, tokens
    found = judged(reference, totals)
    assert "head 0 is dead, is on for 0 % of the tokens" in found.alarms[0]
    assert "head 1 is always open, is on for 100 % of the tokens" in found.alarms[0]
    heads = found.layers[1].heads
    assert [one.is_dead for one in heads] == [True, False, False, False]
    assert [one.is_always_open for one in heads] == [False, True, False, False]


def test_shared_heads_are_always_open_and_no_alarm(reference: RoutingReference):
    heads = judged(reference, live()).layers[0].heads[:SHARED]
    assert [(one.live, one.is_always_open) for one in heads] == [(1, False)] * 2


def test_gates_that_are_no_numbers_alarm(reference: RoutingReference):
    totals = live()
    totals[FIRST.nonfinite] = 3
    assert judged(reference, totals).alarms == ("blocks.0: 3 gates are NaN or infinite",)


def test_no_request_is_an_alarm(reference: RoutingReference):
    found = judged(reference, np.zeros(LAYOUT.width), 0)
    assert found.alarms == ("no data: no request was read",)
    assert found.limits_of is None


def test_too_few_requests_are_not_judged_and_alarm(reference: RoutingReference):
    found = judged(reference, live(), 63)
    assert found.alarms == ("no data: 63 requests were read, limits hold from 64 on",)


def test_layer_without_tokens_is_an_alarm(reference: RoutingReference):
    totals = live()
    totals[SECOND.all] = 0
    assert judged(reference, totals).alarms == ("blocks.1: no token was routed",)


def test_without_counts_of_heads_layers_alone_are_judged(reference: RoutingReference):
    totals = live()
    totals[SECOND.on] *= 1.5
    found = judged(reference, totals, per_head=False)
    assert found.layers[1].heads == ()
    assert [one.statistic for one in found.layers[0].drifts] == ["active", "shared", "margin"]
    assert found.alarms[0].startswith("blocks.1: heads on for a token moved by")
