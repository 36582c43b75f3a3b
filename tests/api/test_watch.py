"""Live routing is compared with a reference."""

from __future__ import annotations

from math import nan
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.serving.drift.reference import profile_of, write_reference
from tests.nightly import sampled
from tests.serving.drift.traffic import metrics_at, requests, window


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.json"
    write_reference(path, profile_of(window(requests(300, seed=0)), window=64, rate=0.01))
    return path


def test_windows_of_a_dump_are_judged(reference: Path, tmp_path: Path):
    window(requests(200, seed=5)).write(tmp_path / "same.npz")
    same = moh_deploy.watch(tmp_path / "same.npz", reference=reference)
    assert [one.requests for one in same.windows] == [64, 64, 72]
    assert not same.alarms
    window(requests(200, seed=5, liked=(-0.5, 0.0, 0.5, 1.0))).write(tmp_path / "other.npz")
    other = moh_deploy.watch(tmp_path / "other.npz", reference=reference)
    assert all(one.alarms for one in other.windows)


def test_server_that_does_not_answer_is_an_alarm(reference: Path):
    with metrics_at(lambda: "") as url:
        found = moh_deploy.watch(url, reference=reference, every=0.001)
    assert found.alarms
    assert "no data" in found.reasons[0]


@sampled(2)
@pytest.mark.parametrize("options", [{"every": 0}, {"windows": 0}, {"every": 1e10}, {"every": nan}])
def test_wrong_options_are_refused(reference: Path, options: dict[str, float]):
    with pytest.raises(
        ConfigError, match=r"expected more than 0 seconds and .* at most, and 1 window"
    ):
        moh_deploy.watch("http://127.0.0.1:1/", reference=reference, **options)  # type: ignore[arg-type]
