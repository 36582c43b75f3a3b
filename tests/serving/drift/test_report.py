"""What `watch` says, in every format."""

import re

import numpy as np
import pytest
from rich.console import Console

from moh_deploy.report.document import About
from moh_deploy.report.html.page import page
from moh_deploy.report.junit import junit
from moh_deploy.serving.drift.judge import LiveCounts, judge_window
from moh_deploy.serving.drift.reference import RoutingReference, profile_of
from moh_deploy.serving.drift.report import WatchReport
from moh_deploy.serving.telemetry.routing import Counts
from tests.serving.drift.traffic import LAYOUT, requests, window


@pytest.fixture(scope="module")
def reference() -> RoutingReference:
    return profile_of(window(requests(400, seed=0)), window=64, rate=0.01)


def report(reference: RoutingReference, *windows: Counts, per_head: bool = True) -> WatchReport:
    judged = tuple(
        judge_window(
            reference,
            LiveCounts(totals, 128, 60.0 * number, 60.0 * (number + 1), per_head),
        )
        for number, totals in enumerate(windows)
    )
    return WatchReport("dump.npz", judged, reference)


SAME = requests(128, seed=5).sum(axis=0)
SHIFTED = requests(128, seed=6, liked=(-0.5, 0.0, 0.5, 1.0)).sum(axis=0)


def text_of(found: WatchReport) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(found)
    return capture.get()


def test_unchanged_traffic_passes(reference: RoutingReference):
    found = report(reference, SAME, SAME)
    assert found.failure is None
    text = text_of(found)
    assert "UNCHANGED: 0 of 2 windows alarmed" in text
    # 1 - 0.99 ** 2
    assert "1 in 100 windows of unchanged traffic; one or more in 2 windows: 2.0 %" in text


def test_drift_fails_and_names_windows_layers_and_heads(reference: RoutingReference):
    found = report(reference, SAME, SHIFTED)
    assert found.failure.exit_code == 1
    assert found.failure.message.startswith("routing is not as in the reference: window 2: blocks.")
    text = text_of(found)
    assert "DRIFTED: 1 of 2 windows alarmed" in text
    assert "heads that moved" in text


def test_no_window_is_an_alarm(reference: RoutingReference):
    found = report(reference)
    assert found.alarms
    assert "NO DATA" in text_of(found)
    assert found.failure.message.startswith("routing could not be judged: no data: there is no")


def test_windows_without_data_beside_unchanged_ones_are_no_drift(reference: RoutingReference):
    found = report(reference, SAME)
    nothing = judge_window(reference, LiveCounts(SAME * 0, 0, 60.0, 120.0))
    mixed = WatchReport("url", (*found.windows, nothing), reference)
    assert "NO DATA: 1 of 2 windows alarmed" in text_of(mixed)
    assert mixed.failure.message.startswith("routing could not be judged: window 2: no data")


def test_page_shows_reference_beside_live_and_over_time(reference: RoutingReference):
    html = page(report(reference, SAME, SHIFTED).document(), About("dump.npz", ""))
    assert "Load by layer and head" in html
    assert "Load over time" in html
    for layer in LAYOUT.layers:
        assert layer.path in html
    assert html.count(">reference<") >= 2
    # The first layer's shared heads are told apart, the second one's are not known.
    assert "<b>S0</b>" in html
    # Heads that moved show both numbers.
    assert re.search(r"on for \d+ of \d+ tokens in the package, for \d+ in the reference", html)


def test_page_without_counts_of_heads_says_so(reference: RoutingReference):
    html = page(report(reference, SAME, per_head=False).document(), About("url", ""))
    assert "--per-head counts them" in html
    assert "Load over time" not in html


def test_each_window_is_a_test_case(reference: RoutingReference):
    xml = junit(report(reference, SAME, SHIFTED).document(), About("dump.npz", ""))
    assert 'tests="3"' in xml
    assert 'failures="2"' in xml


def test_json_has_every_number(reference: RoutingReference):
    found = report(reference, SAME, SHIFTED).to_json()
    assert found["alarms"] is True
    assert found["false_alarms"] == 0.01
    windows = found["windows"]
    assert isinstance(windows, list)
    layer = windows[1]["layers"][0]
    assert set(layer["drifts"][0]) == {"statistic", "distance", "limit", "ratio"}
    head = layer["heads"][2]
    assert np.isclose(head["reference"], reference.layers[0].on[2] / reference.layers[0].tokens)
