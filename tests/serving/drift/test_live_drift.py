"""How far live routing is from the reference, as metrics of the process that serves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving import ServingSettings, open_served
from moh_deploy.serving.drift.live import LiveDrift, open_live_drift
from moh_deploy.serving.drift.reference import RoutingReference, profile_of, write_reference
from moh_deploy.system.bounded_file import sha256_of
from tests.edge_case_package import inputs, write_edge_package
from tests.nightly import nightly
from tests.serving.drift.counted import RandomGates
from tests.serving.drift.traffic import LAYERS


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


def found(drift: LiveDrift) -> dict[tuple[str, ...], float]:
    """Return name and labels of each series, and its value."""
    return {
        (family.name, *one.labels.values()): one.value
        for family in drift.families()
        for one in family.samples
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
    paths = {one.layer.path for one in reference.layers}
    assert {path for path, _ in ratios} == paths
    assert {name for _, name in ratios} >= {"load", "active", "mass", "margin", "head"}
    assert all(0 <= one <= 1 for one in ratios.values())
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
    families = {one.name: one for one in served.families()}
    served.close()
    (info,) = families["moh_reference_info"].samples
    assert info.labels == {"digest": sha256_of(path)}
    windows = families["moh_drift_windows_total"].samples
    assert sum(one.value for one in windows) == 1
    # Real gates are not those that were drawn.
    assert [one.value for one in windows if one.labels["outcome"] == "alarm"] == [1]


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
    first = tuple(replace(one, layers=one.layers[:1]) for one in reference.limits)
    write_reference(path, replace(reference, layers=layers, limits=first))
    with pytest.raises(ConfigError, match="counts other layers"):
        open_live_drift(path, telemetry)
    with pytest.raises(ConfigError, match="does not exist"):
        open_live_drift(tmp_path / "none.json", telemetry)
