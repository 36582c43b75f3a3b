"""Engines that TensorRT-RTX builds, on this CPU: what runs by kernels, and what is refused."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import moh_deploy
from moh_deploy import native
from moh_deploy.derive import engine as api_build
from moh_deploy.errors import BackendError, ConfigError, PackageError, ValidationError
from moh_deploy.machine.gpu import device_code
from moh_deploy.package import OnnxPackage
from moh_deploy.package.writer import save_model
from moh_deploy.runtime.tensorrt import flavour as plugin_library
from moh_deploy.runtime.tensorrt.build_report import BuildReport
from moh_deploy.runtime.tensorrt.candidates import AttentionWay, ChosenWay
from moh_deploy.runtime.tensorrt.engine_graph import read_graph
from moh_deploy.runtime.tensorrt.profiles import make_profiles
from tests.cuda.trt import builds
from tests.cuda.trt.packages import FORMS, export
from tests.handmade_package import write_package
from tests.nightly import nightly, one_in, sampled
from tests.routed_package import write_routed
from tests.trt_packages import (
    double_inside,
    fused_attention,
    required_rtx,
    unknown_operators,
    wide_heads,
    write_changed,
)
from tests.two_layers import write_two_layers

Build = Callable[..., BuildReport]
PackageOf = Callable[[str], Path]
TARGETS = ("8.6", "8.9", "12.0")
PRECISIONS = ("float32", "float16", "bfloat16")


require_equal = api_build.require_equal


@pytest.fixture(autouse=True)
def packages_need_not_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of these tests are made to be refused by TensorRT, and recorded as something else."""
    monkeypatch.setattr(api_build, "require_equal", lambda package: None)


@pytest.fixture(scope="session")
def plugin() -> Path:
    required_rtx()
    return builds.plugin_on_fakes()


@pytest.fixture(scope="module")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> PackageOf:
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


@nightly
@pytest.mark.parametrize("built", one_in(12, product(FORMS, PRECISIONS)), ids="-".join)
def test_every_layer_runs_by_kernels(
    plugin: Path, package_of: PackageOf, tmp_path: Path, built: tuple[str, str]
):
    form, precision = built
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
    assert {(layer.moh_impl, layer.router_impl) for layer in report.layers} == {
        ("kernel", "kernel")
    }
    written = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert written["precision"] == precision
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
def build(plugin: Path, handmade: Path, tmp_path: Path) -> Build:
    """Builds the handmade package into `engine`."""

    def build(**options: object) -> BuildReport:
        given = {
            "package_dir": handmade,
            "backend": "tensorrt-rtx",
            "output": tmp_path / "engine",
            "compute_capabilities": ("8.6",),
            "plugin": plugin,
        }
        return moh_deploy.build(**(given | options))

    return build


@nightly
def test_a_damaged_engine_is_built_again(build: Build, tmp_path: Path):
    build()
    (tmp_path / "engine" / "model.engine").write_bytes(b"vtrt")
    assert build().status == "built"


def test_a_dry_run_writes_nothing(build: Build, tmp_path: Path):
    report = build(dry_run=True)
    assert report.status == "possible"
    assert [layer.moh_impl for layer in report.layers] == ["kernel"]
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


@nightly
def test_without_the_library_functions_run_and_the_report_says_so(build: Build, tmp_path: Path):
    report = build(plugin=None)
    (layer,) = report.layers
    assert (layer.moh_impl, layer.reason) == ("function", "there is no plugin library")
    assert "no plugin library" in report.notes[0]
    assert not (tmp_path / "engine" / "libmoh_plugin.so").exists()


def test_required_kernels_need_the_library(build: Build, tmp_path: Path):
    with pytest.raises(BackendError, match="--require-kernels, but there is no plugin library"):
        build(plugin=None, require_kernels=True)
    assert not (tmp_path / "engine").exists()


def _refused(build: Build, package: Path, **options: object) -> str:
    with pytest.raises(BackendError) as refused:
        build(package_dir=package, **options)
    assert refused.value.exit_code == 6
    assert not (package.parent / "engine").exists()
    return refused.value.message


def test_all_refusals_are_said_at_once(build: Build, tmp_path: Path):
    """Of the plugins' table, of compute capabilities, and of the parser."""
    change, width = wide_heads(264)

    def both(content: onnx.ModelProto) -> None:
        change(content)
        unknown_operators(content)

    package = write_changed(tmp_path / "wide", both, width=width)
    message = _refused(build, package.root)
    assert "cannot build this package, for 4 reasons:" in message
    assert "blocks.0.attn/moh: head_dim is 264; expected up to 256. Run this layer by" in message
    assert "blocks.0.attn/moh: value_dim is 264; expected up to 256." in message
    assert "coin: Bernoulli; expected what the parser of TensorRT-RTX 1." in message
    assert "second coin: Bernoulli; expected what the parser" in message


def test_a_dry_run_reports_what_is_refused(build: Build, tmp_path: Path):
    package = write_changed(tmp_path / "coins", unknown_operators)
    report = build(package_dir=package.root, dry_run=True)
    assert (report.status, [rejection.layer for rejection in report.rejections]) == (
        "refused",
        ["coin", "second coin"],
    )
    assert report.failure is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coins", "package"]


def test_values_that_the_parser_would_round_are_refused(build: Build, tmp_path: Path):
    package = write_changed(tmp_path / "double", double_inside)
    message = _refused(build, package.root)
    assert "- long, squared: of dtype float64; expected float32, float16, bfloat16," in message


def test_gpus_that_the_kernels_are_not_for_are_refused(build: Build, handmade: Path):
    message = _refused(build, handmade, compute_capabilities=("7.5", "8.6"))
    assert "libmoh_plugin.so: compute capability 7.5; expected what it has code for, " in message


@nightly
def test_a_chosen_dense_layer_runs_its_function(build: Build, handmade: Path, tmp_path: Path):
    moh_deploy.tune(handmade, choose={"all": "dense"})
    report = build()
    (layer,) = report.layers
    assert (layer.moh_impl, layer.reason) == ("function", "it was chosen to be dense")
    assert b"MoHAttention" not in (tmp_path / "engine" / "model.engine").read_bytes()
    with pytest.raises(BackendError, match=r"blocks\.0\.attn \(it was chosen to be dense\)"):
        build(require_kernels=True)


@nightly
@pytest.mark.parametrize("form", ["wide heads, dense", "attention of ONNX", "weights beside it"])
def test_other_packages_build(build: Build, tmp_path: Path, form: str):
    if form == "wide heads, dense":
        change, width = wide_heads(264)
        package = write_changed(tmp_path / "other", change, width=width, dense=True)
    elif form == "attention of ONNX":
        package = write_changed(tmp_path / "other", fused_attention)
    else:
        package = write_package(tmp_path / "other", external_data=True)
    assert build(package_dir=package.root, keep_onnx=True).status == "built"
    beside = (tmp_path / "engine" / "model.onnx.data").is_file()
    assert beside == (form == "weights beside it")


@nightly
def test_the_library_may_be_in_the_engine(build: Build, tmp_path: Path):
    build()
    apart = (tmp_path / "engine" / "model.engine").stat().st_size
    report = build(embed_plugin=True)
    assert report.plugin == "in the engine"
    assert (tmp_path / "engine" / "model.engine").stat().st_size > apart + 100_000
    assert not (tmp_path / "engine" / "libmoh_plugin.so").exists()


def test_an_engine_is_replaced_and_other_directories_are_not(build: Build, tmp_path: Path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "mine.txt").write_text("mine")
    with pytest.raises(PackageError, match="exists and is not an engine: it will not be overw"):
        build()
    (tmp_path / "engine" / "mine.txt").unlink()
    build()
    assert build(workspace="64MiB").status == "built"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tensorrt_rtx"}, "backend is 'tensorrt_rtx', expected tensorrt or"),
        ({"precision": "int8"}, "precision is 'int8', expected float32, float16 or bfloat16"),
        ({"compute_capabilities": ["9.0"]}, "compute_capability is '9.0', TensorRT-RTX has 7.5"),
        ({"workspace": "4 gigs"}, "workspace is '4 gigs', expected a whole number with KiB"),
        ({"timing_cache": "times"}, "timing_cache is times, but TensorRT-RTX measures nothing"),
        ({"plugin": None, "embed_plugin": True}, "--embed-plugin, but there is no plugin library"),
        (
            {"backend": "tensorrt", "compute_capabilities": ["8.6"]},
            "compute_capability is 8.6, but TensorRT builds for the GPU of the machine",
        ),
    ],
)
def test_wrong_options_are_refused(build: Build, options: dict[str, object], message: str):
    with pytest.raises((ConfigError, BackendError), match=message):
        build(**options)


@nightly
def test_lowering_what_is_low_is_refused(build: Build, handmade: Path, tmp_path: Path):
    moh_deploy.precision(handmade, to="float16", output=tmp_path / "half")
    assert build(package_dir=tmp_path / "half", precision="float16").precision == "float16"
    with pytest.raises(ConfigError, match=r"precision is bfloat16, but .*half is in float16"):
        build(package_dir=tmp_path / "half", precision="bfloat16")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such file"), (b"no library", "is not a plugin library of moh-deploy")],
)
def test_what_is_no_plugin_library_is_refused(
    build: Build, tmp_path: Path, content: bytes | None, message: str
):
    if content is not None:
        (tmp_path / "lib.so").write_bytes(content)
    with pytest.raises(BackendError, match=message):
        build(plugin=tmp_path / "lib.so")


def test_another_version_of_the_library_is_refused(build: Build, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plugin_library, "__version__", "9.9")
    with pytest.raises(BackendError, match=r"belongs to moh-deploy 0\..*, this is 9\.9"):
        build()


@nightly
@pytest.mark.parametrize("form", FORMS)
def test_a_plain_engine_runs_by_attention_of_tensorrt(
    package_of: PackageOf, tmp_path: Path, form: str
):
    package = package_of(form)
    report = moh_deploy.build(
        package,
        backend="tensorrt-rtx",
        output=tmp_path / "engine",
        precision="float16",
        profiles=_profiles(package),
        compute_capabilities=TARGETS,
        plain=True,
    )
    assert report.status == "built"
    assert report.notes == ()
    not_fused = {
        "blocks.0.attention": "MoHAggregatedAttention is more than scaled dot-product attention",
        # Of windows, in float32; queries are float16 here.
        "blocks.1.attention": "its mask is of another dtype than its queries",
    }
    for layer in report.layers:
        why = not_fused[layer.path] if form == "vit" else None
        assert layer.moh_impl == ("fused" if why is None else "function")
        assert layer.reason == "a plain engine was asked for"
        assert (why or "not measured") in (layer.decision or "")


@nightly
@pytest.mark.parametrize("way", ["function", "fused"])
@pytest.mark.parametrize("form", one_in(6, FORMS))
def test_without_plugins_the_lowered_model_computes_what_the_original_did(
    package_of: PackageOf, tmp_path: Path, form: str, way: AttentionWay
):
    package = OnnxPackage.open(package_of(form))
    profiles = make_profiles([], package.manifest)
    read = read_graph(package, profiles, no_plugins="this test has none")
    graph = read.lowered(
        {
            candidate.node: ChosenWay(way, "")
            for candidate in read.candidates
            if way in candidate.possible
        }
    )
    assert bool(graph.attentions) == (way == "fused")
    assert {node.domain for node in graph.model.graph} == {""}
    save_model(graph.model, package, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for vectors in package.vectors:
        outputs = session.run(None, dict(vectors.inputs))
        for spec, output in zip(package.manifest.outputs, outputs, strict=True):
            np.testing.assert_allclose(output, vectors.outputs[spec.name], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("precision", [None, "float16"])
def test_package_that_is_not_its_original_is_refused(
    build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str | None,
):
    monkeypatch.setattr(api_build, "require_equal", require_equal)
    wrong = write_routed(tmp_path / "wrong", "wrong scale").root
    with pytest.raises(ValidationError, match="wrong, the package to start from, is not equal"):
        build(package_dir=wrong, precision=precision)
    assert not (tmp_path / "engine").exists()


@sampled(2)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_compared_before_it_is_built(build: Build, precision: str):
    assert build(precision=precision).notes == ()


@nightly
def test_a_model_without_layers_builds(build: Build, tmp_path: Path):
    package = write_package(tmp_path / "ordinary", with_layer=False)
    report = build(package_dir=package.root, require_kernels=True)
    assert (report.status, report.layers) == ("built", ())


@nightly
def test_choices_by_size_become_one_for_each_layer(build: Build, tmp_path: Path):
    package = write_two_layers(tmp_path / "two")
    choices = {"all": "sparse", "all[batch<=4]": "dense"}
    moh_deploy.tune(package.root, choose=choices)
    assert any(node.op_type == "If" for node in onnx.load(package.model_path).graph.node)
    small = build(package_dir=package.root, profiles=["batch=1..2..4"])
    assert [layer.moh_impl for layer in small.layers] == ["function", "function"]
    both = build(package_dir=package.root, profiles=["batch=1..2..4", "batch=8"])
    assert [layer.moh_impl for layer in both.layers] == ["kernel", "kernel"]


@nightly
def test_the_log_has_no_warnings_of_the_parser_and_no_paths(
    build: Build, plugin: Path, tmp_path: Path
):
    build()
    log = (tmp_path / "engine" / "build.log").read_text()
    assert "INFO: Successfully created plugin: MoHAttention" in log
    assert "present_inputs not found" not in log
    assert "Input filename:   model.onnx" in log
    assert not {str(place) for place in (tmp_path, plugin.parent) if str(place) in log}


def test_the_compiled_library_builds_for_what_it_has_code_for(build: Build):
    library = Path(native.__file__).parent / plugin_library.PLUGIN_NAME
    if not library.is_file():
        pytest.skip("the plugin library is not compiled: make plugin")
    code = device_code(library)
    targets = [
        name for name in ("8.0", "8.6", "8.9", "12.0") if code.runs_on(int(float(name) * 10))
    ]
    report = build(plugin=library, compute_capabilities=targets, require_kernels=True)
    assert report.status == "built"


def test_nothing_is_written_into_a_package(build: Build, handmade: Path):
    with pytest.raises(ConfigError, match=r"inside of the package .*, which holds nothing else"):
        build(output=handmade / "engine")
    with pytest.raises(PackageError, match="exists and is not an engine"):
        build(output=handmade)
