"""`--backend tensorrt`, over a stand-in: nothing of it has run on a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import BackendError, PackageError
from moh_deploy.runtime.tensorrt.build_plan import TimingCache
from moh_deploy.runtime.tensorrt.build_report import BuildReport
from tests.cuda.trt import builds
from tests.handmade_package import write_package
from tests.nightly import nightly, one_in
from tests.runtime.tensorrt import stand_in
from tests.trt_packages import other_keys, required_rtx, write_changed


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., BuildReport]:
    required_rtx()
    package, library = write_package(tmp_path / "package").root, builds.plugin_on_fakes()

    def build(**options: object) -> BuildReport:
        given = {"package_dir": package, "plugin": library, "output": tmp_path / "engine"}
        return moh_deploy.build(backend="tensorrt", **(given | options))

    return build


@pytest.fixture
def stand_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stand_in")


def test_without_the_package_it_is_said_what_to_install(build: Callable[..., BuildReport]):
    with pytest.raises(BackendError, match="there is no Python package 'tensorrt'") as error:
        build()
    assert error.value.hint is not None
    assert "pip install tensorrt" in error.value.hint


@nightly
def test_it_builds_for_the_gpu_that_it_finds(
    build: Callable[..., BuildReport],
    stand_in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    stand_in.install(stand_in_folder, monkeypatch)
    report = build(require_kernels=True)
    assert report.backend == f"TensorRT {stand_in.VERSION}"
    assert [one.moh_impl for one in report.layers] == ["kernel"]
    written = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert written["compute_capabilities"] == []
    assert written["versions"] == {
        "moh-deploy": moh_deploy.__version__,
        "TensorRT": stand_in.VERSION,
        "GPU": "Stand-in",
        "compute capability": "8.9",
        "CUDA of the driver": "13.0",
    }
    assert build(require_kernels=True).status == "cached"
    monkeypatch.setenv("STAND_IN_VERSION", "11.0.0.2")
    assert build(require_kernels=True).status == "built"
    monkeypatch.setenv("STAND_IN_GPU", "Another")
    assert build(require_kernels=True).status == "built"


@nightly
@pytest.mark.parametrize("fastest", one_in(3, ("fused", "kernel", "function")))
def test_the_candidate_that_is_timed_as_the_fastest_is_built(
    build: Callable[..., BuildReport],
    stand_in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fastest: str,
):
    stand_in.install(stand_in_folder, monkeypatch)
    package = write_changed(tmp_path / "others", other_keys).root
    times = {way: 0.1 if way == fastest else 0.3 for way in ("kernel", "fused", "function")}
    monkeypatch.setenv("STAND_IN_TIMES", ",".join(f"{w}={ms}" for w, ms in times.items()))
    report = build(package_dir=package, profiles=["batch=1..2,seq=3", "batch=8,seq=3"])
    (layer,) = report.layers
    assert layer.moh_impl == fastest
    assert layer.decision == "fastest of 3 timed here"
    assert layer.times_ms == {w: pytest.approx((ms, ms), rel=1e-3) for w, ms in times.items()}
    assert (layer.reason == layer.decision) == (fastest != "kernel")
    engine = (tmp_path / "engine" / "model.engine").read_bytes()
    assert (b"MoHAttention" in engine) == (fastest == "kernel")
    written = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert written["layers"][0]["times_ms"].keys() == times.keys()
    shown = report.to_markdown()
    assert ", ".join(f"{way} {ms:g}/{ms:g}" for way, ms in times.items()) in shown


@nightly
def test_a_candidate_that_does_not_run_is_none(
    build: Callable[..., BuildReport], stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN_TIMES="function=0.1")
    (layer,) = build().layers
    assert (layer.moh_impl, list(layer.times_ms)) == ("function", ["function"])
    assert layer.decision == (
        "fastest of 1 timed here; kernel was not timed: TensorRT refuses to run it"
    )


@nightly
def test_where_no_candidate_runs_the_table_decides(
    build: Callable[..., BuildReport], stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN_TIMES="fused=0.1")
    (layer,) = build().layers
    assert (layer.moh_impl, layer.times_ms) == ("kernel", {})
    assert "nobody measured" in layer.decision
    assert "function was not timed: TensorRT refuses to run it" in layer.decision


@nightly
def test_a_dry_run_times_nothing(
    build: Callable[..., BuildReport], stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    times = "kernel=0.2,function=0.1"
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN_TIMES=times)
    (layer,) = build(dry_run=True).layers
    assert (layer.moh_impl, layer.times_ms) == ("kernel", {})
    assert "nobody measured" in layer.decision


@nightly
def test_engines_may_be_for_other_versions_and_gpus(
    build: Callable[..., BuildReport],
    stand_in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    record = tmp_path / "asked"
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN_CONFIG=str(record))
    options = {"version_compatible": True, "hardware_compatibility": "ampere-plus"}
    assert build(require_kernels=True, **options).status == "built"
    assert record.read_text().splitlines() == ["VERSION_COMPATIBLE AMPERE_PLUS"]
    written = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert written["version_compatible"]
    assert written["hardware_compatibility"] == "AMPERE_PLUS"


@nightly
def test_measured_times_are_kept_for_the_same_stack(
    build: Callable[..., BuildReport],
    stand_in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    stand_in.install(stand_in_folder, monkeypatch)
    times = tmp_path / "times"
    assert build(timing_cache=times, require_kernels=True).notes == ()
    kept = times.read_bytes()
    assert b'"GPU": "Stand-in"' in kept
    assert build(timing_cache=times, workspace="1GiB", require_kernels=True).notes == ()
    monkeypatch.setenv("STAND_IN_VERSION", "11.0.0.2")
    (note,) = build(timing_cache=times, require_kernels=True).notes
    assert "times is neither used nor replaced: it was measured with TensorRT 11.0.0.1" in note
    assert times.read_bytes() == kept


@nightly
def test_an_engine_is_there_where_its_times_cannot_be_kept(
    build: Callable[..., BuildReport],
    stand_in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(self: TimingCache, times: bytes) -> None:
        assert times
        raise PackageError(f"{self.path} cannot be written.")

    stand_in.install(stand_in_folder, monkeypatch)
    monkeypatch.setattr(TimingCache, "write", refuse)
    with pytest.raises(PackageError, match="times cannot be written"):
        build(timing_cache=tmp_path / "times", plain=True, plugin=None)
    assert build(plain=True, plugin=None).status == "cached"


def test_without_a_gpu_it_is_said_so(
    build: Callable[..., BuildReport],
    stand_in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    stand_in.install(stand_in_folder, monkeypatch)
    (stand_in_folder / "libcuda.so.1").unlink()
    (stand_in_folder / "libcuda.so.1").write_text("no library")
    with pytest.raises(BackendError, match="TensorRT builds for the GPU of the machine that it"):
        build()
    assert not (tmp_path / "engine").exists()


def test_a_driver_that_is_too_old_for_the_kernels_is_refused(
    build: Callable[..., BuildReport], stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN_CUDA="11080", STAND_IN_TIMES="")
    with pytest.raises(BackendError, match=r"takes CUDA 11\.8; expected 1\d\.0 or later, with whi"):
        build()


@nightly
def test_a_plain_engine_needs_no_driver_for_kernels(
    build: Callable[..., BuildReport], stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN_CUDA="11080", STAND_IN_TIMES="")
    assert build(plain=True, plugin=None).status == "built"


def test_old_versions_are_refused(
    build: Callable[..., BuildReport], stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN_VERSION="10.6.0")
    with pytest.raises(BackendError, match=r"is of version 10\.6\.0, expected 10\.7 or later"):
        build()


def test_a_module_that_does_not_load_is_an_error_with_its_reason(
    build: Callable[..., BuildReport], stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    stand_in.install(stand_in_folder, monkeypatch)
    text = "raise ImportError('libnvinfer.so.11: cannot open shared object file')"
    (stand_in_folder / "tensorrt" / "__init__.py").write_text(text)
    with pytest.raises(BackendError, match=r"with status 1\.[^$]*libnvinfer\.so\.11: cannot open"):
        build()


def test_an_abort_of_the_native_library_is_an_error_with_its_last_words(
    build: Callable[..., BuildReport],
    stand_in_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    stand_in.install(stand_in_folder, monkeypatch, STAND_IN="abort")
    with pytest.raises(BackendError, match=r"with SIGABRT\.[^$]*out of everything"):
        build()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["package"]
