"""The engine without kernels that `bench` compares an engine with."""

from __future__ import annotations

from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.runtime.tensorrt.engine_dir import read_engine_dir
from moh_deploy.runtime.tensorrt.models import EngineDir
from moh_deploy.system.progress import SilentProgress
from tests.cuda.trt import builds
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.trt_packages import required_rtx

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
    assert [one.moh_impl for one in kernels.layers] == ["kernel"]
    assert [one.moh_impl for one in plain.layers] == ["function"]
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
