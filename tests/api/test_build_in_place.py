"""Engines of decoders whose caches are written in place, as far as TensorRT-RTX builds them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from packaging import version

import moh_deploy
from moh_deploy.derive.caches_in_place import write_caches_in_place
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.package.cache_buffers import with_dtypes
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.tensorrt.build_plan import BuildPlan
from moh_deploy.runtime.tensorrt.engine_dir import read_engine_dir
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.messages import Stack
from moh_deploy.runtime.tensorrt.models import EngineDir
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.progress import SilentProgress
from tests.cuda.trt import builds, rtx
from tests.graph.decoders import write_decoder
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import MANIFEST, write_engine
from tests.trt_packages import required_rtx

pytestmark = pytest.mark.skipif(
    version.parse(ort.__version__) < version.parse("1.25"),
    reason="this ONNX Runtime may have no TensorScatter",
)

PROFILE = "batch=1..2..4,seq=1..3..16,total=1..8..64,buffer=64"


@pytest.fixture(scope="module")
def grows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("grows") / "package").root


def build(package: Path, output: Path, **options: object):
    given = {"backend": "tensorrt-rtx", "compute_capabilities": ("8.6",), "cache": "in-place"}
    return moh_deploy.build(package, output=output, **(given | options))


@nightly
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_each_cache_is_a_layer_of_tensorrts_own(grows: Path, tmp_path: Path, precision: str):
    required_rtx()
    options = {"profiles": [PROFILE], "plain": True, "keep_onnx": True, "precision": precision}
    report = build(grows, tmp_path / "engine", **options)
    assert report.status == "built"
    model = onnx.load(tmp_path / "engine" / "model.onnx")
    caches = [one for one in model.graph.input if one.name.startswith("past")]
    wanted = getattr(onnx.TensorProto, {"float32": "FLOAT"}.get(precision, precision.upper()))
    for one in caches:
        assert one.type.tensor_type.shape.dim[2].dim_value == 64
        assert one.type.tensor_type.elem_type == wanted
    written = read_engine_dir(tmp_path / "engine")
    for found, said in ((model.graph.input, written.inputs), (model.graph.output, written.outputs)):
        assert [one.dtype for one in said] == [
            onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type).name
            for one in found
        ]
    assert written.caches is not None
    assert [one.past for one in written.caches.buffers] == [one.name for one in caches]
    (tmp_path / "parsed").mkdir()
    sizes = {"batch": (1, 2, 4), "seq": (1, 3, 16), "total": (1, 8, 64)}
    shapes = {
        one.name: tuple(
            [
                sizes[dim.dim_param][end] if dim.dim_param else dim.dim_value
                for dim in one.type.tensor_type.shape.dim
            ]
            for end in range(3)
        )
        for one in model.graph.input
    }
    parsed = rtx.build(model, tmp_path / "parsed", library=None, profiles=[shapes])
    assert sum("KV_CACHE_UPDATE" in layer for layer in parsed.layers) == 2
    # The same package is the same engine: nothing is built again.
    assert build(grows, tmp_path / "engine", **options).status == "cached"
    # But for one of before caches were written down, whose dtypes may be wrong.
    path = tmp_path / "engine" / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "caches": None}))
    assert build(grows, tmp_path / "engine", **options).status == "built"


@nightly
def test_attention_over_a_buffer_runs_by_the_plugin(grows: Path, tmp_path: Path):
    required_rtx()
    plugin = builds.plugin_on_fakes()
    options = {"profiles": [PROFILE], "plugin": plugin, "require_kernels": False}
    report = build(grows, tmp_path / "engine", **options, precision="float16", dry_run=True)
    assert report.status == "possible"
    assert {one.moh_impl for one in report.layers} == {"kernel"}


def test_places_have_to_be_said(grows: Path, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"buffer=1\.\.11\.\.44: TensorRT writes into caches of one"
    ):
        build(grows, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


@pytest.fixture(scope="module")
def written(grows: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    output = tmp_path_factory.mktemp("written") / "package"
    return write_caches_in_place(OnnxPackage.open(grows), output, SilentProgress())


def engine_of(package: OnnxPackage, root: Path, dtype: str) -> EngineDir:
    """Write what `build` says of an engine whose caches are of a dtype."""
    caches = package.manifest.caches
    assert caches is not None
    names = [name for one in caches.buffers for name in (one.past, one.present)]
    said = with_dtypes(package.manifest, dict.fromkeys(names, dtype))
    sha256 = sha256_of(package.root / "manifest.json")
    told = replace(MANIFEST, profiles=(), precision=dtype, package_sha256=sha256, caches=caches)
    return EngineDir(write_engine(root, replace(told, inputs=said.inputs, outputs=said.outputs)))


def test_an_engine_is_compared_on_caches_of_its_own_dtype(written: OnnxPackage, tmp_path: Path):
    engine = engine_of(written, tmp_path / "engine", "float16")
    package = engine.made_from(written.root)
    assert package.manifest.inputs == engine.manifest.inputs
    assert package.manifest.outputs == engine.manifest.outputs
    for run, recorded in zip(package.vectors, written.vectors, strict=True):
        check_inputs(engine.manifest.inputs, run.inputs)
        assert {one.name: run.outputs[one.name].dtype.name for one in package.manifest.outputs} == {
            one.name: one.dtype for one in engine.manifest.outputs
        }
        np.testing.assert_allclose(
            run.outputs["present_key"], recorded.outputs["present_key"], rtol=1e-3
        )


def test_an_engine_of_a_package_that_is_gone_says_from_what_to_build(
    grows: Path, written: OnnxPackage, tmp_path: Path
):
    engine = engine_of(written, tmp_path / "engine", "float32")
    with pytest.raises(ConfigError, match="was not built from") as refused:
        engine.made_from(grows)
    assert "Export the model with --cache in-place" in str(refused.value.hint)


@pytest.mark.parametrize(("found", "is_refused"), [("10.14.1", True), ("10.15.0", False)])
def test_tensorrt_without_the_layer_is_refused(
    grows: Path, written: OnnxPackage, found: str, is_refused: bool
):
    for package, refused in ((written, is_refused), (OnnxPackage.open(grows), False)):
        plan = BuildPlan(
            FLAVOURS["tensorrt"],
            package,
            low=None,
            profiles=(),
            targets=(),
            workspace_bytes=None,
            timing_cache=None,
            library=None,
            embed_plugin=False,
            keep_onnx=False,
        )
        stack = Stack(found, None, None, None)
        if not refused:
            plan.require_cache_layer(stack)
            continue
        with pytest.raises(BackendError, match=f"TensorRT {found} has no layer; expected 10.15"):
            plan.require_cache_layer(stack)
