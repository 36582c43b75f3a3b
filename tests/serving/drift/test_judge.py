"""Windows of live traffic, judged by a reference."""

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
    assert [head.is_dead for head in heads] == [True, False, False, False]
    assert [head.is_always_open for head in heads] == [False, True, False, False]


def test_shared_heads_are_always_open_and_no_alarm(reference: RoutingReference):
    heads = judged(reference, live()).layers[0].heads[:SHARED]
    assert [(head.live, head.is_always_open) for head in heads] == [(1, False)] * 2


@pytest.mark.parametrize(
    ("change", "count", "alarm"),
    [
        ((FIRST.nonfinite, 3), 128, "blocks.0: 3 gates are NaN or infinite"),
        ((SECOND.all, 0), 128, "blocks.1: no token was routed"),
        ((slice(None), 0), 0, "no data: no request was read"),
        ((FIRST.nonfinite, 0), 63, "no data: 63 requests were read, limits hold from 64 on"),
    ],
    ids=["no numbers", "no tokens", "no request", "too few"],
)
def test_what_cannot_be_judged_alarms(
    reference: RoutingReference, change: tuple[int | slice, int], count: int, alarm: str
):
    totals = live()
    totals[change[0]] = change[1]
    found = judged(reference, totals, count)
    assert found.alarms == (alarm,)
    assert (found.limits_of is None) == (count < 64)


def test_without_counts_of_heads_layers_alone_are_judged(reference: RoutingReference):
    totals = live()
    totals[SECOND.on] *= 1.5
    found = judged(reference, totals, per_head=False)
    assert found.layers[1].heads == ()
    assert [drift.statistic for drift in found.layers[0].drifts] == ["active", "shared", "margin"]
    assert found.alarms[0].startswith("blocks.1: heads on for a token moved by")
