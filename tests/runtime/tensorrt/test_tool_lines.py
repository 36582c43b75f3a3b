"""Lines of trtexec and Polygraphy for engines; those of Polygraphy are run as far as it goes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.runtime.tensorrt import tool_lines as module
from moh_deploy.runtime.tensorrt.engine_dir import EngineManifest, PluginInfo, read_engine_dir
from moh_deploy.runtime.tensorrt.messages import BuilderOptions
from moh_deploy.runtime.tensorrt.tool_lines import tool_lines
from tests.cuda.trt import builds
from tests.cuda.trt.rtx import folder_of_the_plain_name
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import MANIFEST
from tests.trt_packages import required_rtx

_PLUGIN, _REGISTERED = "libmoh_plugin.so", "libmoh_plugin_registered.so"
_FILES = dict.fromkeys(("model.engine", _PLUGIN, _REGISTERED), "0" * 64)
WITH_PLUGIN = replace(MANIFEST, plugin=PluginInfo(_PLUGIN, "0" * 64), files=_FILES)
KEPT = replace(WITH_PLUGIN, files=_FILES | {"model.onnx": "0" * 64})


@pytest.fixture(autouse=True)
def _tensorrt_is_no_package(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if "rtx_engine" not in request.fixturenames:
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)


def test_lines_run_the_engine_at_the_sizes_that_it_is_tuned_for():
    assert tool_lines(Path("my engine"), WITH_PLUGIN) == (
        "trtexec '--loadEngine=my engine/model.engine'"
        " '--dynamicPlugins=my engine/libmoh_plugin.so' --shapes=x:2x3x8",
        "polygraphy run 'my engine/model.engine' --model-type engine --trt"
        " --plugins 'my engine/libmoh_plugin_registered.so' --input-shapes 'x:[2,3,8]'",
    )


def test_with_the_lowered_model_lines_build_the_engine_with_all_profiles():
    _, build, _, convert = tool_lines(Path("e"), KEPT)
    assert build == (
        "trtexec --onnx=e/model.onnx --dynamicPlugins=e/libmoh_plugin.so --stronglyTyped --noTF32"
        " --profile=0 --minShapes=x:1x1x8 --optShapes=x:2x3x8 --maxShapes=x:4x16x8"
        " --profile=1 --minShapes=x:4x16x8 --optShapes=x:8x32x8 --maxShapes=x:32x64x8"
        " --skipInference --saveEngine=rebuilt.engine"
    )
    assert convert == (
        "polygraphy convert e/model.onnx --plugins e/libmoh_plugin_registered.so --strongly-typed"
        " --trt-min-shapes 'x:[1,1,8]' --trt-opt-shapes 'x:[2,3,8]' --trt-max-shapes 'x:[4,16,8]'"
        " --trt-min-shapes 'x:[4,16,8]' --trt-opt-shapes 'x:[8,32,8]'"
        " --trt-max-shapes 'x:[32,64,8]' -o rebuilt.engine"
    )


_PROGRAMS = ("trtexec --loadEngine", "trtexec --onnx", "polygraphy run", "polygraphy convert")
_ALL = BuilderOptions(refit=True, weight_streaming=True, optimization_level=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ("", "", "", "")),
        (
            {"builder": _ALL},
            (
                "",
                "--refit --allowWeightStreaming --builderOptimizationLevel=5",
                "",
                "--refittable --weight-streaming --builder-optimization-level 5",
            ),
        ),
        (
            {"builder": BuilderOptions(strip_weights=True)},
            (None, "--stripWeights", None, "--strip-plan"),
        ),
        (
            {"version_compatible": True, "hardware_compatibility": "AMPERE_PLUS"},
            (
                "--versionCompatible",
                "--hardwareCompatibilityLevel=ampere+ --versionCompatible",
                "",
                "--hardware-compatibility-level ampere_plus --version-compatible",
            ),
        ),
        (
            {"workspace_bytes": 7},
            ("", "--memPoolSize=workspace:7B", "", "--pool-limit workspace:7"),
        ),
        # The library is in the engine: nothing beside it could build one.
        ({"plugin": PluginInfo(None, "0" * 64)}, ("--versionCompatible", None, "", None)),
        ({"files": {"model.onnx": ""}}, ("", "", None, None)),
        ({"backend": "tensorrt-rtx"}, (None, None, "", "")),
        ({"compute_capabilities": ("8.6", "8.9")}, ("", "", "", "--compute-capabilities 8.6 8.9")),
    ],
)
def test_lines_say_what_was_asked_of_the_build(
    changes: Mapping[str, object], words: tuple[str | None, ...]
):
    lines = tool_lines(Path("e"), replace(KEPT, **changes))
    plain = tool_lines(Path("e"), KEPT)
    for program, before, expected in zip(_PROGRAMS, plain, words, strict=True):
        found = [line for line in lines if program in line]
        assert len(found) == (expected is not None), program
        if found:
            more = [word for word in shlex.split(found[0]) if word not in shlex.split(before)]
            assert " ".join(more).removeprefix("POLYGRAPHY_USE_TENSORRT_RTX=1") == expected


def test_the_linker_finds_a_tensorrt_that_pip_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.undo()
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_libs" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    line = tool_lines(Path("e"), WITH_PLUGIN)[1]
    assert line.startswith(f"LD_LIBRARY_PATH={tmp_path / 'tensorrt_libs'} polygraphy run ")


# With TensorRT-RTX, which builds on a CPU.


@pytest.fixture(scope="module")
def rtx_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with its lowered model, plugins and the library that registers them."""
    required_rtx()
    pytest.importorskip("polygraphy")
    folder = tmp_path_factory.mktemp("rtx")
    (folder / "native").mkdir()
    shutil.copy(builds.plugin_on_fakes(), folder / "native" / _PLUGIN)
    register = builds.PLUGINS / "cuda" / "registered" / "register.cc"
    shutil.copy(builds.build("register", [register]), folder / "native" / _REGISTERED)
    moh_deploy.build(
        write_package(folder / "package").root,
        backend="tensorrt-rtx",
        output=folder / "engine",
        compute_capabilities=("8.6",),
        plugin=folder / "native" / _PLUGIN,
        keep_onnx=True,
        profiles=["batch=1..2..4,seq=1..3..16", "batch=4..8..32,seq=16..32..64"],
        weight_streaming=True,
        builder_optimization_level=2,
    )
    return folder / "engine"


def _shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # The package of TensorRT-RTX lacks the plain name, which its parser looks for.
    line = re.sub(r"LD_LIBRARY_PATH=\S+", f"LD_LIBRARY_PATH={folder_of_the_plain_name()}", line)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=os.environ | {"PATH": path, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
    )


@nightly
def test_polygraphy_builds_by_the_line_that_build_prints(rtx_engine: Path, tmp_path: Path):
    *before, run, convert = tool_lines(rtx_engine, read_engine_dir(rtx_engine))
    # Where the package lacks the name that `_shell` has in a folder of its own.
    assert all(re.fullmatch(r"ln -s (libtensorrt_rtx\.so)\.1 /.*/\1", line) for line in before)
    built = _shell(convert, tmp_path)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-1000:]
    assert b"MoHAttention" in (tmp_path / "rebuilt.engine").read_bytes()
    assert "2 profile(s)" in built.stdout
    # Without a GPU it ends where the engine is loaded: behind arguments, shapes and plugins.
    ran = _shell(run, tmp_path)
    assert "Could not deserialize engine" in ran.stdout + ran.stderr
    assert "cudaError 35" in ran.stdout + ran.stderr
    assert "Plugin not found" not in ran.stdout + ran.stderr


@nightly
def test_polygraphy_takes_the_loader_beside_the_engine(rtx_engine: Path, tmp_path: Path):
    *_, convert = tool_lines(rtx_engine, read_engine_dir(rtx_engine))
    line, count = re.subn(r"model\.onnx --plugins \S+", "load.py", convert)
    assert count == 1
    built = _shell(line, tmp_path)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-1000:]
    assert b"MoHAttention" in (tmp_path / "rebuilt.engine").read_bytes()


@nightly
def test_the_loader_refuses_to_parse_what_was_not_lowered(rtx_engine: Path, tmp_path: Path):
    shutil.copy(rtx_engine / "load.py", tmp_path)
    shutil.copy(rtx_engine / "engine.json", tmp_path)
    ran = _shell("python -c 'import load; load.load_network()'", tmp_path)
    assert "build with --keep-onnx. The model.onnx of a package is for" in ran.stderr


@nightly
def test_the_loader_does_not_let_the_parser_end_the_process(rtx_engine: Path, tmp_path: Path):
    script = "import load; load.load_network()"
    line = f"cd {rtx_engine} && env -u LD_LIBRARY_PATH python -B -c '{script}'"
    ran = _shell(line, tmp_path)
    assert ran.returncode == 1
    assert "looks for libtensorrt_rtx.so when it meets a plugin: link it to" in ran.stderr


@nightly
def test_options_of_the_builder_are_recorded(rtx_engine: Path):
    manifest: EngineManifest = read_engine_dir(rtx_engine)
    assert manifest.builder == BuilderOptions(weight_streaming=True, optimization_level=2)
