"""Engines that TensorRT-RTX builds, on this CPU: what runs by kernels, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy import native
from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage
from moh_deploy.report.build import BuildReport
from tests.cuda.trt import builds
from tests.cuda.trt.packages import FORMS, export
from tests.handmade_package import write_package

TARGETS = ("8.6", "8.9", "12.0")
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
INSTALL = "pip install 'moh-deploy[tensorrt]'"


@pytest.fixture(scope="session")
def plugin() -> Path:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip(f"no TensorRT-RTX: {INSTALL}")
    return builds.plugin_on_fakes()


@pytest.fixture(scope="module")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports each form once."""
    made: dict[str, Path] = {}

    def package(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            export(FORMS[name], made[name])
        return made[name] / "package"

    return package


def _profiles(root: Path) -> list[str]:
    dims = OnnxPackage.open(root).manifest.dims
    small = {"batch": "1..2..4", "seq": "4..12..64"}
    large = {"batch": "4..8..16", "seq": "64..128..256"}
    return [",".join(f"{dim}={sizes[dim]}" for dim in dims) for sizes in (small, large)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_every_layer_runs_by_kernels(
    plugin: Path,
    package_of: Callable[[str], Path],
    tmp_path: Path,
    form: str,
    precision: str,
):
    package = package_of(form)
    report = moh_deploy.build(
        package,
        backend="tensorrt-rtx",
        output=tmp_path / "engine",
        precision=precision,
        profiles=_profiles(package),
        compute_capabilities=TARGETS,
        require_kernels=True,
        plugin=plugin,
    )
    assert report.status == "built"
    assert {(one.moh_impl, one.router_impl) for one in report.layers} == {("kernel", "kernel")}
    written = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert written["precision"] == PRECISIONS[precision]
    assert len(written["profiles"]) == 2
    engine = (tmp_path / "engine" / "model.engine").read_bytes()
    for op in FORMS[form].plugins:
        assert op.encode() in engine


@pytest.fixture(autouse=True)
def _nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make plugin` may have put a library into the package."""
    monkeypatch.setattr(native, "FOLDER", tmp_path / "native")


@pytest.fixture
def handmade(tmp_path: Path) -> Path:
    return write_package(tmp_path / "package").root


@pytest.fixture
def build(plugin: Path, handmade: Path, tmp_path: Path) -> Callable[..., BuildReport]:
    """Builds the handmade package into `engine`."""

    def build(**options: object) -> BuildReport:
        given = {"backend": "tensorrt-rtx", "compute_capabilities": ("8.6",), "plugin": plugin}
        return moh_deploy.build(handmade, output=tmp_path / "engine", **(given | options))

    return build


def test_the_same_again_is_there_already(build: Callable[..., BuildReport], tmp_path: Path):
    first = build()
    before = (tmp_path / "engine" / "engine.json").stat().st_mtime_ns
    again = build()
    assert (first.status, again.status) == ("built", "cached")
    assert again.layers == first.layers
    assert (tmp_path / "engine" / "engine.json").stat().st_mtime_ns == before
    assert build(profiles=["batch=1..2"]).status == "built"


def test_a_damaged_engine_is_built_again(build: Callable[..., BuildReport], tmp_path: Path):
    build()
    (tmp_path / "engine" / "model.engine").write_bytes(b"vtrt")
    assert build().status == "built"


def test_a_dry_run_writes_nothing(build: Callable[..., BuildReport], tmp_path: Path):
    report = build(dry_run=True)
    assert report.status == "possible"
    assert [one.moh_impl for one in report.layers] == ["kernel"]
    assert [one.name for one in tmp_path.iterdir()] == ["package"]


def test_without_the_library_functions_run_and_the_report_says_so(
    build: Callable[..., BuildReport], tmp_path: Path
):
    report = build(plugin=None)
    (layer,) = report.layers
    assert (layer.moh_impl, layer.reason) == ("function", "there is no plugin library")
    assert "no plugin library" in report.notes[0]
    assert not (tmp_path / "engine" / "libmoh_plugin.so").exists()


def test_required_kernels_need_the_library(build: Callable[..., BuildReport], tmp_path: Path):
    with pytest.raises(BackendError, match="--require-kernels, but there is no plugin library"):
        build(plugin=None, require_kernels=True)
    assert not (tmp_path / "engine").exists()
