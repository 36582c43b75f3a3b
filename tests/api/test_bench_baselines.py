"""Baselines that are no package: the original, plain models, and a package without its routers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.package import Manifest, OnnxPackage, PackageWriter
from moh_deploy.perf.bench.candidate import FreshRun, FreshTask, fresh_run
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import OnnxFile
from moh_deploy.runtime.tensorrt.engine_dir import read_engine_dir
from moh_deploy.runtime.tensorrt.models import EngineDir
from moh_deploy.system.npz import write_npz
from moh_deploy.system.progress import SilentProgress
from tests.api.test_bench import Fresh, measured
from tests.cuda.trt import builds
from tests.fake_original import FakeOriginal
from tests.handmade_package import MANIFEST, model, vectors, without_layers, write_package
from tests.nightly import nightly
from tests.trt_packages import required_rtx
from tests.true_manifest import finish_true
from tests.two_layers import write_two_layers


def write(
    root: Path, content: onnx.ModelProto, manifest: Manifest = MANIFEST, **recorded: bool
) -> OnnxPackage:
    with PackageWriter(root) as writer:
        onnx.save(content, writer.path("model.onnx"))
        return finish_true(writer, manifest, [vectors(**recorded)])


@pytest.fixture
def identity(tmp_path: Path) -> OnnxPackage:
    """A package that computes y = x."""
    return write_package(tmp_path / "package", with_layer=False)


def findings(report: BenchReport) -> str:
    return "\n".join(report.findings())


def test_original_takes_turns_on_as_many_threads(identity: OnnxPackage):
    original = FakeOriginal()
    report = measured(identity, baselines=["eager"], original=original, threads=3)
    assert original.runs == 1
    assert original.threads == []
    eager = report.results[1]
    assert (eager.contestant, eager.is_baseline) == ("eager", True)
    assert eager.agreement.reason is None
    assert eager.fresh == FreshRun()
    assert "those of eager agree" in findings(report)
    assert report.notes == ()


def test_plain_export_is_a_model_of_its_own_that_takes_inputs_by_position(identity: OnnxPackage):
    fresh = Fresh()
    report = measured(
        identity, baselines=["plain-onnx"], original=FakeOriginal(), measure_fresh=fresh, threads=1
    )
    assert report.results[1].agreement.reason is None
    task = fresh.tasks[1]
    assert isinstance(task.model, OnnxFile)
    assert task.model.path.name == "model.onnx"
    assert task.variant == Variant(kernels="off", threads=1)


def test_baseline_that_computes_something_else_is_said_to(identity: OnnxPackage):
    report = measured(identity, baselines=["eager", "plain-onnx"], original=FakeOriginal(1.5))
    for name in ("eager", "plain-onnx"):
        assert f"those of {name} differ, so its speed is that of another" in findings(report)
    assert report.passed is None


def test_original_of_another_checkpoint_is_said_to_be(tmp_path: Path):
    package = write_package(tmp_path / "package", with_layer=False)
    assert package.manifest.checkpoint_sha256 is None
    assert measured(package, baselines=["eager"], original=FakeOriginal(sha256="1")).notes == ()
    manifest = replace(without_layers(), checkpoint_sha256="2" * 64)
    package = write(tmp_path / "of_another", model(with_layer=False), manifest, with_layer=False)
    report = measured(package, baselines=["eager"], original=FakeOriginal(sha256="1"))
    assert report.notes == (
        f"the original is of another checkpoint than {package.root} was made from",
    )


def test_original_and_its_baselines_belong_together(identity: OnnxPackage):
    with pytest.raises(ConfigError, match="'plain-onnx' is the original model, which is not given"):
        measured(identity, baselines=["plain-onnx"])
    with pytest.raises(ConfigError, match="given, but no baseline is made from it"):
        measured(identity, original=FakeOriginal())
    with pytest.raises(ConfigError, match="'eagar' is no directory and no file") as refused:
        measured(identity, baselines=["eagar"])
    assert refused.value.hint == "Did you mean 'eager'?"


def test_file_of_the_users_is_a_baseline(identity: OnnxPackage, tmp_path: Path):
    path = tmp_path / "mine.onnx"
    onnx.save(model(with_layer=False), path)
    report = measured(identity, baselines=[path], gates=[f"p50 <= {path}"])
    assert report.passed is True
    assert report.results[1].contestant == str(path)
    onnx.save(model(with_layer=False, scale=2.0), path)
    assert "differ" in findings(measured(identity, baselines=[path]))


@nightly
def test_process_of_its_own_takes_inputs_by_position_too(tmp_path: Path):
    path, inputs = tmp_path / "plain.onnx", tmp_path / "in.npz"
    FakeOriginal().write_onnx(path, None)
    write_npz(inputs, vectors().inputs)
    assert (
        fresh_run(FreshTask(OnnxFile(path), Variant(kernels="off", threads=1), inputs)).first_run_ms
        > 0
    )


def test_router_overhead_is_the_time_without_routers(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    report = measured(package, baselines=["fixed-routing"], batch=[2, 3])
    first, second = report.routing
    # The meter says 2 ms and 4 ms, and half of that in CPU time.
    assert (first.wall_ms.value, first.cpu_ms.value, first.share) == (-2.0, -1.0, -1.0)
    assert [first.sizes["batch"], second.sizes["batch"]] == [2, 3]
    fixed = [result for result in report.results if result.contestant == "fixed-routing"]
    assert [item.agreement.reason for item in fixed] == [None, None]
    assert [item.fresh for item in fixed] == [FreshRun()] * 2
    assert "router overhead (dynamic minus fixed routing) -2 ms" in findings(report)


def test_routing_of_one_layer_is_fixed_by_its_path(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    baselines = ["fixed-routing", "fixed-routing:blocks.1.attn"]
    report = measured(package, baselines=baselines, gates=["p50 <= fixed-routing:blocks.1.attn"])
    assert [item.layer for item in report.routing] == [None, "blocks.1.attn"]
    assert [item.wall_ms.value for item in report.routing] == [-2.0, -4.0]
    assert [result.agreement.reason for result in report.results[1:]] == [None, None]
    assert report.passed is True
    with pytest.raises(ConfigError, match=r"there is no layer 'blocks\.2\.attn'") as refused:
        measured(package, baselines=["fixed-routing:blocks.2.attn"])
    assert refused.value.hint == "Did you mean 'blocks.1.attn'?"


def test_routing_is_fixed_to_that_of_each_set_of_inputs(tmp_path: Path):
    """Gates of other inputs would compute something else, which is caught by its outputs."""
    package = write_package(tmp_path / "package")
    files = [tmp_path / f"{seed}.npz" for seed in range(2)]
    for seed, path in enumerate(files):
        write_npz(path, vectors(seed=seed).inputs)
    report = measured(package, inputs=files, baselines=["fixed-routing"])
    assert [result.agreement.reason for result in report.results if result.is_baseline] == [
        None,
        None,
    ]


def test_router_overhead_that_is_not_measurable_says_why(tmp_path: Path):
    content = model()
    content.graph.node[2].input[3] = "scores"  # not what is recorded
    package = write(tmp_path / "package", content)
    report = measured(package, baselines=["fixed-routing", "functions"])
    assert [result.contestant for result in report.results] == [str(package.root), "functions"]
    (found,) = report.routing
    assert found.wall_ms is None
    assert "router overhead is not measurable, attention does not compute" in findings(report)


# The engine without kernels that `bench` compares an engine with.


OPTIONS = {
    "backend": "tensorrt-rtx",
    "precision": "float16",
    "profiles": ["batch=1..2..4,seq=3..12", "batch=8,seq=3"],
    "compute_capabilities": ("8.6", "8.9"),
    "workspace": "1GiB",
}


@nightly
def test_a_plain_engine_is_the_same_but_for_its_kernels(tmp_path: Path):
    required_rtx()
    package = write_package(tmp_path / "package").root
    library = builds.plugin_on_fakes()
    moh_deploy.build(package, output=tmp_path / "engine", plugin=library, **OPTIONS)
    EngineDir(tmp_path / "engine").build_plain(package, tmp_path / "plain", SilentProgress())
    kernels, plain = (read_engine_dir(tmp_path / name) for name in ("engine", "plain"))
    same = ("precision", "profiles", "compute_capabilities", "workspace_bytes", "package_sha256")
    for name in same:
        assert getattr(plain, name) == getattr(kernels, name), name
    assert [layer.moh_impl for layer in kernels.layers] == ["kernel"]
    assert [layer.moh_impl for layer in plain.layers] == ["function"]
    assert plain.layers[0].reason == "a plain engine was asked for"
    assert plain.plugin is None
    assert b"MoHAttention" not in (tmp_path / "plain" / "model.engine").read_bytes()
    # What is there is another engine, of all else the same.
    again = moh_deploy.build(package, output=tmp_path / "engine", plain=True, **OPTIONS)
    assert again.status == "built"


@pytest.mark.parametrize("option", [{"require_kernels": True}, {"plugin": "lib.so"}])
def test_a_plain_engine_has_no_options_of_kernels(tmp_path: Path, option: dict[str, object]):
    package = write_package(tmp_path / "package").root
    with pytest.raises(ConfigError, match="plain is given, and an option of kernels"):
        moh_deploy.build(
            package, backend="tensorrt-rtx", output=tmp_path / "engine", plain=True, **option
        )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"version_compatible": True}, "version_compatible is given, but TensorRT-RTX has no such"),
        ({"hardware_compatibility": "ampere-plus"}, "hardware_compatibility is ampere-plus, but"),
        ({"hardware_compatibility": "ampere"}, "is 'ampere', expected ampere-plus or same-compute"),
    ],
)
def test_engines_of_rtx_are_for_what_they_were_built_for(
    tmp_path: Path, option: dict[str, object], message: str
):
    package = write_package(tmp_path / "package").root
    with pytest.raises(ConfigError, match=message):
        moh_deploy.build(package, backend="tensorrt-rtx", output=tmp_path / "engine", **option)
