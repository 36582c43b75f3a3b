"""A reference is made of inputs or of a dump."""

import os
from collections.abc import Callable
from math import nan
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.drift.reference import (
    REFERENCE_FILE,
    profile_of,
    read_reference,
    write_reference,
)
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.npz import write_npz
from moh_deploy.system.replaceable import check_file_output
from tests.edge_case_package import inputs, write_edge_package
from tests.nightly import nightly, sampled
from tests.runtime.tensorrt.engines import write_engine
from tests.serving.drift.traffic import metrics_at, requests, window


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("edge") / "package")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    write_npz(path, inputs(batch=121, seq=5, seed=3))
    return path


@sampled(2)
@pytest.mark.parametrize(("size", "requests"), [(1, 121), (2, 60)])
def test_files_are_cut_into_requests(
    package: OnnxPackage, samples: Path, tmp_path: Path, size: int, requests: int
):
    output = tmp_path / "reference.json"
    made = [samples] if size == 1 else [samples, write_second(tmp_path)]
    report = moh_deploy.profile(
        package.root, output, inputs=made, request_size=size, window=32, false_alarms=0.05
    )
    found = read_reference(output)
    assert found == report.reference
    assert found.requests == requests * len(made)
    assert found.digest == package.manifest.files["model.onnx"]
    assert found.layers[0].tokens == requests * len(made) * size * 5


def write_second(folder: Path) -> Path:
    path = folder / "second.npz"
    write_npz(path, inputs(batch=121, seq=5, seed=4))
    return path


@nightly
def test_dump_of_a_served_model_gives_the_same_counts(
    package: OnnxPackage, samples: Path, tmp_path: Path
):
    served = open_served(PackageDir(package.root), ServingSettings("m", threads=1))
    served.telemetry.start_window(sample_every=1)
    arrays = dict(np.load(samples))
    for start in range(0, 121, 11):
        served.answer(
            {name: array[start : start + 11] for name, array in arrays.items()}, (1,) * 11
        )
    recorded = served.telemetry.dump_window()
    recorded.write(tmp_path / "dump.npz")
    served.close()

    def made(path: Path) -> moh_deploy.serving.api.profile.ProfileReport:  # type: ignore[name-defined]
        output = tmp_path / f"{path.stem}.json"
        return moh_deploy.profile(package.root, output, inputs=[path], window=32, false_alarms=0.05)

    first, second = made(samples).reference, made(tmp_path / "dump.npz").reference
    assert first.requests == second.requests
    for item, other in zip(first.layers, second.layers, strict=True):
        assert (item.tokens, item.on, item.margins) == (other.tokens, other.on, other.margins)
        np.testing.assert_allclose(item.mass, other.mass, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": []}, "profile needs inputs"),
        ({"request_size": 0}, "request_size is 0"),
        ({"window": 0}, "window is 0"),
        ({"false_alarms": 0.5}, "expected 0.0001 to 0.1"),
        ({"request_size": 40}, "of 3 requests in 3 runs was asked for"),
    ],
)
def test_wrong_options_are_refused(
    package: OnnxPackage, samples: Path, tmp_path: Path, options: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        moh_deploy.profile(package.root, tmp_path / "r.json", **{"inputs": [samples], **options})  # type: ignore[arg-type]
    assert not (tmp_path / "r.json").exists()


def test_reference_that_cannot_be_written_is_refused_before_anything_runs(
    package: OnnxPackage, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(OnnxPackage, "open", pytest.fail)
    for output in (tmp_path, tmp_path / "missing" / "reference.json"):
        with pytest.raises(PackageError, match=f"{output} cannot be written"):
            moh_deploy.profile(package.root, output, inputs=[samples])


def unknown_version(path: Path) -> None:
    write_npz(path, {"x": np.zeros(3)})
    content = bytearray(path.read_bytes())
    # Of the first entry of the archive's directory: what is needed to unpack it.
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(content)


def name_of_no_encoding(path: Path) -> None:
    write_npz(path, {"ä": np.zeros(3)})
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xff"))


@pytest.mark.parametrize("damage", [os.mkfifo, unknown_version, name_of_no_encoding])
def test_file_that_cannot_be_read_is_refused(
    package: OnnxPackage, tmp_path: Path, damage: Callable[[Path], None]
):
    damage(tmp_path / "in.npz")
    with pytest.raises(ConfigError, match=r"in\.npz cannot be read as an npz file"):
        moh_deploy.profile(package.root, tmp_path / "r.json", inputs=[tmp_path / "in.npz"])


@nightly
def test_earlier_reference_is_replaced_and_nothing_else(
    package: OnnxPackage, samples: Path, tmp_path: Path
):
    output = tmp_path / "reference.json"
    output.write_text('{"learning_rate": 0.1}')
    with pytest.raises(PackageError, match="exists and is not a reference of"):
        moh_deploy.profile(package.root, output, inputs=[samples])
    output.unlink()
    moh_deploy.profile(package.root, output, inputs=[samples])
    check_file_output(output, REFERENCE_FILE)
    with pytest.raises(ConfigError, match="is read as well"):
        moh_deploy.profile(package.root, samples, inputs=[samples])


def test_engine_is_refused(tmp_path: Path):
    engine = write_engine(tmp_path / "engine")
    root = engine if isinstance(engine, Path) else engine.root
    with pytest.raises(ConfigError, match="it was compiled without its gates"):
        moh_deploy.profile(root, tmp_path / "r.json", inputs=["x.npz"])


# Live routing is compared with a reference.


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.json"
    write_reference(path, profile_of(window(requests(300, seed=0)), window=64, rate=0.01))
    return path


def test_windows_of_a_dump_are_judged(reference: Path, tmp_path: Path):
    window(requests(200, seed=5)).write(tmp_path / "same.npz")
    same = moh_deploy.watch(tmp_path / "same.npz", reference=reference)
    assert [item.requests for item in same.windows] == [64, 64, 72]
    assert not same.alarms
    window(requests(200, seed=5, liked=(-0.5, 0.0, 0.5, 1.0))).write(tmp_path / "other.npz")
    other = moh_deploy.watch(tmp_path / "other.npz", reference=reference)
    assert all(item.alarms for item in other.windows)


def test_server_that_does_not_answer_is_an_alarm(reference: Path):
    with metrics_at(lambda: "") as url:
        found = moh_deploy.watch(url, reference=reference, every=0.001)
    assert found.alarms
    assert "no data" in found.reasons[0]


@sampled(2)
@pytest.mark.parametrize("options", [{"every": 0}, {"windows": 0}, {"every": 1e10}, {"every": nan}])
def test_watch_wrong_options_are_refused(reference: Path, options: dict[str, float]):
    with pytest.raises(
        ConfigError, match=r"expected more than 0 seconds and .* at most, and 1 window"
    ):
        moh_deploy.watch("http://127.0.0.1:1/", reference=reference, **options)  # type: ignore[arg-type]
