"""Windows of live traffic, from a dump and from a server's metrics."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.drift.judge import LiveCounts
from moh_deploy.serving.drift.live import (
    LiveDrift,
    open_live_drift,
    windows_of_dump,
    windows_of_metrics,
)
from moh_deploy.serving.drift.reference import RoutingReference, profile_of, write_reference
from moh_deploy.serving.metrics import Family, exposition
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.telemetry.routing import RecordedWindow, WindowAbout
from moh_deploy.system.bounded_file import sha256_of
from tests.edge_case_package import HEADS, inputs, write_edge_package
from tests.nightly import nightly
from tests.serving.drift.traffic import LAYERS, RandomGates, metrics_at, requests, window


@pytest.fixture(scope="module")
def made_up() -> RoutingReference:
    return profile_of(window(requests(120, seed=0)), window=50, rate=0.05)


def dumped(folder: Path, recorded: RecordedWindow) -> Path:
    path = folder / "dump.npz"
    recorded.write(path)
    return path


@pytest.mark.parametrize(
    ("requests_in_it", "windows"),
    [(130, [(0, 50), (50, 130)]), (20, [(0, 20)]), (0, [])],
    ids=["the rest goes to the last", "too short", "empty"],
)
def test_dump_is_cut_into_windows(
    made_up: RoutingReference, tmp_path: Path, requests_in_it: int, windows: list[tuple[int, int]]
):
    rows = requests(requests_in_it, seed=1)
    found = windows_of_dump(dumped(tmp_path, window(rows)), made_up)
    assert [(item.since, item.until) for item in found] == [(a, b - 1) for a, b in windows]
    assert [item.requests for item in found] == [b - a for a, b in windows]
    for item, (begin, end) in zip(found, windows, strict=True):
        np.testing.assert_allclose(item.totals, rows[begin:end].sum(axis=0), rtol=1e-6)


def test_rows_of_several_requests_count_as_these(made_up: RoutingReference, tmp_path: Path):
    rows = requests(60, seed=1)
    about = WindowAbout("d1", LAYERS)
    twos = RecordedWindow(about, rows, np.full(60, 2), np.arange(60) * 1.0)
    found = windows_of_dump(dumped(tmp_path, twos), made_up)
    assert [item.requests for item in found] == [50, 70]


def test_dump_of_another_package_is_refused(made_up: RoutingReference, tmp_path: Path):
    path = dumped(tmp_path, window(requests(60, seed=1), digest="d2"))
    with pytest.raises(ConfigError, match="of another package than the reference: digest d2"):
        windows_of_dump(path, made_up)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("edge") / "package")


@pytest.fixture(scope="module")
def reference(package: OnnxPackage) -> RoutingReference:
    served = RandomGates(package)
    served.telemetry.start_window()
    served.answer(120)
    recorded = served.telemetry.dump_window()
    assert recorded is not None
    return profile_of(recorded, window=50, rate=0.01)


def watched(url: str, reference: RoutingReference, actions: list[object]) -> list[LiveCounts]:
    """Look after each action: a number of requests that a server answers, or a function."""
    waiting: Iterator[object] = iter(actions)

    def wait(_: float) -> None:
        action = next(waiting)
        assert callable(action)
        action()

    clock = count()
    return list(
        windows_of_metrics(
            url, reference, every=1.0, windows=len(actions), wait=wait, now=lambda: next(clock)
        )
    )


def test_windows_are_what_was_counted_between_two_looks(
    package: OnnxPackage, reference: RoutingReference
):
    served = RandomGates(package)
    served.answer(30)
    served.telemetry.start_window()
    with metrics_at(served.text) as url:
        actions: list[object] = [lambda: served.answer(60), lambda: served.answer(70)]
        first, second = watched(url, reference, actions)
    recorded = served.telemetry.dump_window()
    for found, rows in ((first, recorded.rows[:60]), (second, recorded.rows[60:])):
        assert found.requests == len(rows)
        totals = rows.sum(axis=0)
        # No distance is of the sum of margins.
        for columns in recorded.layout.columns:
            totals[columns.margin_sum] = 0
        np.testing.assert_allclose(found.totals, totals, rtol=1e-5)


@pytest.mark.parametrize(
    ("answered", "windows"),
    [([30, 30, 30, 30], [60, 60]), ([0, 50], [0, 50])],
    ids=["too small ones are put together", "none is a window of its own"],
)
def test_windows_have_enough_requests_or_none(
    package: OnnxPackage, reference: RoutingReference, answered: list[int], windows: list[int]
):
    served = RandomGates(package)
    with metrics_at(served.text) as url:
        actions: list[object] = [partial(served.answer, number) for number in answered]
        found = watched(url, reference, actions)
    assert [item.requests for item in found] == windows


def test_server_that_began_anew_has_counted_from_nothing(
    package: OnnxPackage, reference: RoutingReference
):
    servers = [RandomGates(package), RandomGates(package)]
    servers[0].answer(200)

    def restart() -> None:
        servers.pop(0)
        servers[0].answer(60)

    with metrics_at(lambda: servers[0].text()) as url:
        (found,) = watched(url, reference, [restart])
    assert found.requests == 60


def test_server_that_does_not_answer_gives_no_data(
    package: OnnxPackage, reference: RoutingReference
):
    served, is_down = RandomGates(package), [False]

    def fail() -> None:
        is_down[0] = True

    def repair() -> None:
        is_down[0] = False
        served.answer(50)

    with metrics_at(lambda: "" if is_down[0] else served.text()) as url:
        found = watched(url, reference, [fail, repair, lambda: served.answer(50)])
    assert "does not answer: HTTP Error 503" in str(found[0].no_data)
    # What was counted while nobody looked is of no window: nothing tells since when.
    assert found[1].no_data is not None
    assert (found[2].no_data, found[2].requests) == (None, 50)


def test_heads_that_are_not_counted_are_not_known(
    package: OnnxPackage, reference: RoutingReference
):
    served = RandomGates(package, per_head=False)
    with metrics_at(served.text) as url:
        (found,) = watched(url, reference, [lambda: served.answer(50)])
    assert not found.per_head
    columns = reference.layout.columns[0]
    assert found.totals[columns.on].sum() == 50 * 5 * HEADS


def test_metrics_of_another_package_are_refused(package: OnnxPackage, made_up: RoutingReference):
    with (
        metrics_at(RandomGates(package).text) as url,
        pytest.raises(ConfigError, match="of another package than the reference"),
    ):
        watched(url, made_up, [lambda: None])


def test_metrics_that_know_no_routing_are_refused(reference: RoutingReference):
    text, _ = exposition((Family("up", "Up.", "gauge", ()),))
    with (
        metrics_at(lambda: text) as url,
        pytest.raises(ConfigError, match="has no metric moh_package_info"),
    ):
        watched(url, reference, [lambda: None])


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/metrics", "http://[", "metrics"])
def test_only_addresses_of_servers_are_looked_at(reference: RoutingReference, url: str):
    with pytest.raises(ConfigError, match="is no address"):
        watched(url, reference, [lambda: None])


# How far live routing is from the reference, as metrics of the process that serves.


def found(drift: LiveDrift) -> dict[tuple[str, ...], float]:
    """Return name and labels of each series, and its value."""
    return {
        (family.name, *sample.labels.values()): sample.value
        for family in drift.families()
        for sample in family.samples
    }


@nightly
def test_windows_are_judged_as_soon_as_they_are_full(
    package: OnnxPackage, reference: RoutingReference
):
    # Single heads are known in here, though nobody is shown them.
    served = RandomGates(package, per_head=False, seed=1)
    served.answer(70)
    drift = LiveDrift(reference, "d", served.telemetry)
    served.answer(49)
    assert found(drift) == {
        ("moh_reference_info", "d"): 1,
        ("moh_drift_windows_total", "usual"): 0,
        ("moh_drift_windows_total", "alarm"): 0,
        ("moh_drift_recent_alarms",): 0,
    }
    served.answer(1)
    usual = found(drift)
    assert usual["moh_drift_windows_total", "usual"] == 1
    ratios = {key[1:]: value for key, value in usual.items() if key[0] == "moh_drift_ratio"}
    paths = {layer.layer.path for layer in reference.layers}
    assert {path for path, _ in ratios} == paths
    assert {name for _, name in ratios} >= {"load", "active", "mass", "margin", "head"}
    assert all(0 <= ratio <= 1 for ratio in ratios.values())
    served.answer(60, closed=3)
    moved = found(drift)
    assert moved["moh_drift_windows_total", "alarm"] == 1
    assert all(moved["moh_drift_ratio", path, "head"] > 1 for path in paths)
    # What it showed stays until the next window is full.
    served.answer(20)
    assert found(drift) == moved
    served.answer(30)
    after = found(drift)
    assert after["moh_drift_windows_total", "usual"] == 2
    assert max(after["moh_drift_ratio", path, "head"] for path in paths) <= 1


def test_gates_that_are_not_finite_are_an_alarm(package: OnnxPackage, reference: RoutingReference):
    served = RandomGates(package)
    drift = LiveDrift(reference, "d", served.telemetry)
    served.answer(50)
    served.telemetry._counts[served.telemetry.reader.layout.columns[0].nonfinite] += 1
    assert found(drift)["moh_drift_windows_total", "alarm"] == 1


def test_alarms_among_the_last_three_windows_are_shown(
    package: OnnxPackage, reference: RoutingReference
):
    served = RandomGates(package)
    drift = LiveDrift(reference, "d", served.telemetry)
    recent = []
    for is_alarm in (True, False, True, True, False, False, False):
        served.answer(50)
        nonfinite = served.telemetry.reader.layout.columns[0].nonfinite
        served.telemetry._counts[nonfinite] += is_alarm
        recent.append(found(drift)["moh_drift_recent_alarms",])
    assert recent == [1, 1, 2, 2, 2, 1, 0]


def test_served_model_shows_its_reference(
    package: OnnxPackage, reference: RoutingReference, tmp_path: Path
):
    path = tmp_path / "reference.json"
    write_reference(path, reference)
    settings = ServingSettings("m", threads=1, sample_every=1, reference=str(path))
    served = open_served(PackageDir(package.root), settings)
    for _ in range(50):
        served.answer(inputs(batch=1))
    families = {family.name: family for family in served.families()}
    served.close()
    (info,) = families["moh_reference_info"].samples
    assert info.labels == {"digest": sha256_of(path)}
    windows = families["moh_drift_windows_total"].samples
    assert sum(window.value for window in windows) == 1
    # Real gates are not those that were drawn.
    assert [window.value for window in windows if window.labels["outcome"] == "alarm"] == [1]


def test_reference_of_something_else_is_refused(
    package: OnnxPackage, reference: RoutingReference, tmp_path: Path
):
    path, telemetry = tmp_path / "reference.json", RandomGates(package).telemetry
    write_reference(path, replace(reference, digest="0" * 64))
    with pytest.raises(
        ConfigError, match=r"reference\.json: the served model is of another .*0{12}"
    ):
        open_live_drift(path, telemetry)
    layers = (replace(reference.layers[0], layer=replace(LAYERS[0], path="other")),)
    first = tuple(replace(limit, layers=limit.layers[:1]) for limit in reference.limits)
    write_reference(path, replace(reference, layers=layers, limits=first))
    with pytest.raises(ConfigError, match="counts other layers"):
        open_live_drift(path, telemetry)
    with pytest.raises(ConfigError, match="does not exist"):
        open_live_drift(tmp_path / "none.json", telemetry)
