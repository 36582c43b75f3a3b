from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.report.document import Text
from moh_deploy.serving.triton import check
from moh_deploy.serving.triton.bundle_json import NEVER_RUN, read_bundle
from tests.handmade_package import write_package
from tests.nightly import sampled
from tests.routed_package import Fault, write_routed
from tests.runtime.tensorrt.engines import write_engine

OTLP = "http://collector:4318"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path / "my package").root


def test_bundle_is_written_and_found_good(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check, "find_server", lambda given: None)  # whatever this machine has
    report = moh_deploy.bundle(package, tmp_path / "b", instances=2, threads=3, max_batch=8)
    settings = read_bundle(tmp_path / "b").settings
    assert report.bundle.settings == settings
    assert (settings.name, settings.instances, settings.threads) == ("my-package", 2, 3)
    assert settings.max_batch == 8
    assert f"tritonserver --model-repository={tmp_path / 'b' / 'repository'}" in report.start
    assert moh_deploy.check_bundle(tmp_path / "b").failure is None


def test_printed_paths_hold_whatever_the_folder_is_called(package: Path, tmp_path: Path):
    root = tmp_path / "my $bundle's"
    report = moh_deploy.bundle(package, root)
    assert shlex.split(report.start) == [
        "tritonserver",
        f"--model-repository={root / 'repository'}",
    ]
    texts = [block.text for block in report.document().blocks if isinstance(block, Text)]
    assert f"moh-deploy bundle --check {shlex.quote(str(root))}" in "\n".join(texts)


def test_bundle_of_an_engine_says_that_no_server_has_run_one(tmp_path: Path):
    report = moh_deploy.bundle(write_engine(tmp_path / "engine"), tmp_path / "b")
    assert NEVER_RUN in report.to_markdown()


def test_guard_is_the_usual_one_by_its_name(package: Path, tmp_path: Path):
    beside = {"shadow": package, "shadow_share": 0.5, "otlp": OTLP}
    moh_deploy.bundle(package, tmp_path / "b", guard="default", **beside)
    settings = read_bundle(tmp_path / "b").settings
    assert settings.otlp == OTLP
    assert (settings.guard, settings.policy, settings.drill) == (True, None, False)
    assert (settings.shadow, settings.shadow_share) == ("shadow", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tfserving"}, "target is 'tfserving', expected triton"),
        ({"instances": 0}, "instances is 0, expected 1 or more"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
        ({"max_delay_ms": -1}, "max_delay_ms is -1, expected 0 or more"),
        ({"max_delay_ms": float("inf")}, "max_delay_ms is inf, expected 1e+09 at most"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms is nan, expected 1e+09 at most"),
        ({"shadow_share": 0}, "shadow_share is 0, expected more than 0"),
        ({"drill": True}, "drill is for a guard: there is none"),
        ({"reference": "r.json", "sample_every": 0}, "routing that is read: sample_every is 0"),
        ({"backend": "tensorrt"}, "backend is 'tensorrt', but package"),
        ({"otlp": "collector:4318"}, "--otlp is 'collector:4318', expected the address"),
        ({"backend": "onnxruntime"}, "backend is 'onnxruntime', but package"),
    ],
)
def test_wrong_option_is_refused(
    package: Path, tmp_path: Path, options: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as error:
        moh_deploy.bundle(package, tmp_path / "b", **options)
    assert message in error.value.message
    assert not (tmp_path / "b").exists()


@sampled(2)
@pytest.mark.parametrize(
    "fault", ["top_k off by one", "wrong scale", "one gate off by 1 %", "stale weights"]
)
def test_package_that_verify_refuses_is_not_bundled(tmp_path: Path, fault: Fault):
    package = write_routed(tmp_path / "package", fault).root
    with pytest.raises(ValidationError, match="the package to start from, is not equal"):
        moh_deploy.bundle(package, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_what_is_no_bundle_cannot_be_checked(package: Path):
    with pytest.raises(PackageError, match="is no bundle"):
        moh_deploy.check_bundle(package)
