"""`--backend tensorrt`, over a stand-in: nothing of it has run on a GPU."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from packaging import version

import moh_deploy
from moh_deploy.derive.forms import write_caches_in_place
from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.package import OnnxPackage
from moh_deploy.package.cache_buffers import with_dtypes
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.tensorrt.build_plan import TimingCache
from moh_deploy.runtime.tensorrt.build_report import BuildReport
from moh_deploy.runtime.tensorrt.engine_dir import read_engine_dir
from moh_deploy.runtime.tensorrt.messages import Stack
from moh_deploy.runtime.tensorrt.models import EngineDir
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.progress import SilentProgress
from tests.cuda.trt import builds, rtx
from tests.graph.decoders import write_decoder
from tests.handmade_package import write_package
from tests.nightly import nightly, one_in
from tests.runtime.tensorrt import stand_in
from tests.runtime.tensorrt.engines import MANIFEST, plan_of, write_engine
from tests.trt_packages import other_keys, required_rtx, write_changed

Build = Callable[..., BuildReport]
Install = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    required_rtx()
    package, library = write_package(tmp_path / "package").root, builds.plugin_on_fakes()

    def build(**options: object) -> BuildReport:
        given = {"package_dir": package, "plugin": library, "output": tmp_path / "engine"}
        return moh_deploy.build(backend="tensorrt", **(given | options))

    return build


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts the stand-in in the place of TensorRT, with its variables, and returns its folder."""
    folder = tmp_path_factory.mktemp("stand_in")

    def install(**variables: str) -> Path:
        stand_in.install(folder, monkeypatch, **variables)
        return folder

    return install


@nightly
def test_it_builds_for_the_gpu_that_it_finds(
    build: Build, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install()
    report = build(require_kernels=True)
    assert report.backend == f"TensorRT {stand_in.VERSION}"
    assert [layer.moh_impl for layer in report.layers] == ["kernel"]
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
    build: Build, install: Install, tmp_path: Path, fastest: str
):
    package = write_changed(tmp_path / "others", other_keys).root
    # Less than a launch takes the CPU: it is the GPU's time that counts.
    times = {way: 0.001 if way == fastest else 0.003 for way in ("kernel", "fused", "function")}
    install(STAND_IN_TIMES=",".join(f"{way}={ms}" for way, ms in times.items()))
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
def test_what_cannot_be_captured_is_not_timed(build: Build, install: Install):
    install(STAND_IN_TIMES="kernel=0.2,fused=0.1,function=0.1", STAND_IN_NO_CAPTURE="1")
    (layer,) = build().layers
    assert layer.times_ms == {}
    assert "failed with CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (900)" in (layer.decision or "")


_NOT_TIMED = "was not timed: TensorRT refuses to run it"


@nightly
@pytest.mark.parametrize(
    ("times", "options", "way", "timed", "decision"),
    [
        (
            "function=0.1",
            {},
            "function",
            ["function"],
            f"fastest of 1 timed here; kernel {_NOT_TIMED}",
        ),
        ("fused=0.1", {}, "kernel", [], f"not measured.*function {_NOT_TIMED}"),
        ("kernel=0.2,function=0.1", {"dry_run": True}, "kernel", [], "not measured"),
    ],
    ids=["one does not run", "none runs: the table decides", "a dry run times nothing"],
)
def test_what_was_not_timed_is_not_the_fastest(
    build: Build,
    install: Install,
    times: str,
    options: dict[str, object],
    way: str,
    timed: list[str],
    decision: str,
):
    install(STAND_IN_TIMES=times)
    (layer,) = build(**options).layers
    assert (layer.moh_impl, list(layer.times_ms)) == (way, timed)
    assert re.search(decision, layer.decision or "")


@nightly
def test_engines_may_be_for_other_versions_and_gpus(build: Build, install: Install, tmp_path: Path):
    record = tmp_path / "asked"
    install(STAND_IN_CONFIG=str(record))
    options = {"version_compatible": True, "hardware_compatibility": "ampere-plus"}
    assert build(require_kernels=True, **options).status == "built"
    assert record.read_text().splitlines() == ["VERSION_COMPATIBLE AMPERE_PLUS"]
    written = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert written["version_compatible"]
    assert written["hardware_compatibility"] == "AMPERE_PLUS"


@nightly
def test_measured_times_are_kept_for_the_same_stack(
    build: Build, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install()
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
    build: Build, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: TimingCache, times: bytes) -> None:
        assert times
        raise PackageError(f"{self.path} cannot be written.")

    install()
    monkeypatch.setattr(TimingCache, "write", refuse)
    with pytest.raises(PackageError, match="times cannot be written"):
        build(timing_cache=tmp_path / "times", plain=True, plugin=None)
    assert build(plain=True, plugin=None).status == "cached"


_NO_MODULE = "raise ImportError('libnvinfer.so.11: cannot open shared object file')"


@pytest.mark.parametrize(
    ("variables", "broken", "message"),
    [
        (None, {}, "there is no Python package 'tensorrt'"),
        ({}, {"libcuda.so.1": "no library"}, "TensorRT builds for the GPU of the machine that it"),
        (
            {"STAND_IN_CUDA": "11080", "STAND_IN_TIMES": ""},
            {},
            r"takes CUDA 11\.8; expected 1\d\.0 or later, with whi",
        ),
        ({"STAND_IN_VERSION": "10.6.0"}, {}, r"is of version 10\.6\.0, expected 10\.7 or later"),
        (
            {},
            {"tensorrt/__init__.py": _NO_MODULE},
            r"with status 1\.[^$]*libnvinfer\.so\.11: cannot open",
        ),
        ({"STAND_IN": "abort"}, {}, r"with SIGABRT\.[^$]*out of everything"),
    ],
    ids=["not installed", "no GPU", "old driver", "old version", "does not load", "aborts"],
)
def test_tensorrt_that_does_not_work_here_is_an_error_with_its_reason(
    build: Build,
    install: Install,
    tmp_path: Path,
    variables: dict[str, str] | None,
    broken: dict[str, str],
    message: str,
):
    if variables is not None:
        folder = install(**variables)
        for name, text in broken.items():
            (folder / name).unlink()
            (folder / name).write_text(text)
    with pytest.raises(BackendError, match=message) as error:
        build()
    assert variables is not None or "pip install tensorrt" in str(error.value.hint)
    assert [entry.name for entry in tmp_path.iterdir()] == ["package"]


@nightly
def test_a_plain_engine_needs_no_driver_for_kernels(build: Build, install: Install):
    install(STAND_IN_CUDA="11080", STAND_IN_TIMES="")
    assert build(plain=True, plugin=None).status == "built"


# Engines of decoders whose caches are written in place, as far as TensorRT-RTX builds them.


scatters = pytest.mark.skipif(
    version.parse(ort.__version__) < version.parse("1.25"),
    reason="this ONNX Runtime may have no TensorScatter",
)

PROFILE = "batch=1..2..4,seq=1..3..16,total=1..8..64,buffer=64"


@pytest.fixture(scope="module")
def grows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("grows") / "package").root


def build_in_place(package: Path, output: Path, **options: object):
    given = {"backend": "tensorrt-rtx", "compute_capabilities": ("8.6",), "cache": "in-place"}
    return moh_deploy.build(package, output=output, **(given | options))


@scatters
@nightly
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_each_cache_is_a_layer_of_tensorrts_own(grows: Path, tmp_path: Path, precision: str):
    required_rtx()
    options = {"profiles": [PROFILE], "plain": True, "keep_onnx": True, "precision": precision}
    report = build_in_place(grows, tmp_path / "engine", **options)
    assert report.status == "built"
    model = onnx.load(tmp_path / "engine" / "model.onnx")
    caches = [item for item in model.graph.input if item.name.startswith("past")]
    wanted = getattr(onnx.TensorProto, {"float32": "FLOAT"}.get(precision, precision.upper()))
    for cach in caches:
        assert cach.type.tensor_type.shape.dim[2].dim_value == 64
        assert cach.type.tensor_type.elem_type == wanted
    written = read_engine_dir(tmp_path / "engine")
    for found, said in ((model.graph.input, written.inputs), (model.graph.output, written.outputs)):
        assert [item.dtype for item in said] == [
            onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type).name
            for item in found
        ]
    assert [buffer.past for buffer in written.caches.buffers] == [cach.name for cach in caches]
    (tmp_path / "parsed").mkdir()
    sizes = {"batch": (1, 2, 4), "seq": (1, 3, 16), "total": (1, 8, 64)}
    shapes = {
        item.name: tuple(
            [
                sizes[dim.dim_param][end] if dim.dim_param else dim.dim_value
                for dim in item.type.tensor_type.shape.dim
            ]
            for end in range(3)
        )
        for item in model.graph.input
    }
    parsed = rtx.build(model, tmp_path / "parsed", library=None, profiles=[shapes])
    assert sum("KV_CACHE_UPDATE" in layer for layer in parsed.layers) == 2
    # The same package is the same engine: nothing is built again.
    assert build_in_place(grows, tmp_path / "engine", **options).status == "cached"
    # But for one of before caches were written down, whose dtypes may be wrong.
    path = tmp_path / "engine" / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "caches": None}))
    assert build_in_place(grows, tmp_path / "engine", **options).status == "built"


@scatters
@nightly
def test_attention_over_a_buffer_runs_by_the_plugin(grows: Path, tmp_path: Path):
    required_rtx()
    plugin = builds.plugin_on_fakes()
    options = {"profiles": [PROFILE], "plugin": plugin, "require_kernels": False}
    report = build_in_place(
        grows, tmp_path / "engine", **options, precision="float16", dry_run=True
    )
    assert report.status == "possible"
    assert {layer.moh_impl for layer in report.layers} == {"kernel"}


@scatters
def test_places_have_to_be_said(grows: Path, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"buffer=1\.\.11\.\.44: TensorRT writes into caches of one"
    ):
        build_in_place(grows, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.fixture(scope="module")
def written(grows: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    output = tmp_path_factory.mktemp("written") / "package"
    return write_caches_in_place(OnnxPackage.open(grows), output, SilentProgress())


def engine_of(package: OnnxPackage, root: Path, dtype: str) -> EngineDir:
    """Write what `build` says of an engine whose caches are of a dtype."""
    caches = package.manifest.caches
    names = [name for buffer in caches.buffers for name in (buffer.past, buffer.present)]
    said = with_dtypes(package.manifest, dict.fromkeys(names, dtype))
    sha256 = sha256_of(package.root / "manifest.json")
    told = replace(MANIFEST, profiles=(), precision=dtype, package_sha256=sha256, caches=caches)
    return EngineDir(write_engine(root, replace(told, inputs=said.inputs, outputs=said.outputs)))


@scatters
def test_an_engine_is_compared_on_caches_of_its_own_dtype(written: OnnxPackage, tmp_path: Path):
    engine = engine_of(written, tmp_path / "engine", "float16")
    package = engine.made_from(written.root)
    assert package.manifest.inputs == engine.manifest.inputs
    assert package.manifest.outputs == engine.manifest.outputs
    for run, recorded in zip(package.vectors, written.vectors, strict=True):
        check_inputs(engine.manifest.inputs, run.inputs)
        assert {
            output.name: run.outputs[output.name].dtype.name for output in package.manifest.outputs
        } == {output.name: output.dtype for output in engine.manifest.outputs}
        np.testing.assert_allclose(
            run.outputs["present_key"], recorded.outputs["present_key"], rtol=1e-3
        )


@scatters
def test_an_engine_of_a_package_that_is_gone_says_from_what_to_build(
    grows: Path, written: OnnxPackage, tmp_path: Path
):
    engine = engine_of(written, tmp_path / "engine", "float32")
    with pytest.raises(ConfigError, match="was not built from") as refused:
        engine.made_from(grows)
    assert "Export the model with --cache in-place" in str(refused.value.hint)


@scatters
@pytest.mark.parametrize(("found", "is_refused"), [("10.14.1", True), ("10.15.0", False)])
def test_tensorrt_without_the_layer_is_refused(
    grows: Path, written: OnnxPackage, found: str, is_refused: bool
):
    for package, refused in ((written, is_refused), (OnnxPackage.open(grows), False)):
        plan = plan_of(package)
        stack = Stack(found, None, None, None)
        if not refused:
            plan.require_cache_layer(stack)
            continue
        with pytest.raises(BackendError, match=f"TensorRT {found} has no layer; expected 10.15"):
            plan.require_cache_layer(stack)
