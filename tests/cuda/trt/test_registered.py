"""libmoh_plugin_registered.so, dlopened by programs with real registries of three TensorRTs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.trt import builds
from tests.cuda.trt.rtx import folder_of_the_plain_name
from tests.cuda.trt.test_registries import OPS, lean

_SOURCE = builds.PLUGINS / "cuda" / "registered" / "register.cc"
_NOWHERE = "moh-deploy: no TensorRT to register plugins in: load it first.\n"
# Imports a TensorRT, or none, and opens the library as Polygraphy does.
_PYTHON = """
import ctypes, importlib, json, sys
trt = importlib.import_module(sys.argv[2])
ctypes.CDLL(sys.argv[1])
creators = trt.get_plugin_registry().all_creators
print(json.dumps(sorted(c.name for c in creators if c.plugin_namespace == "moh")))
"""


@pytest.fixture(scope="module")
def program() -> Path:
    source, library = builds.HERE / "registered.cc", lean(10)
    return builds.build("registered", [source], libraries=(library,), kind=builds.PROGRAM)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The library, in a folder of its own."""
    built = builds.build("register", [_SOURCE])
    return Path(shutil.copy(built, tmp_path / "libmoh_plugin_registered.so"))


@pytest.fixture
def registered(alone: Path, fake_library: Path) -> Path:
    """The library beside the plugins."""
    shutil.copy(fake_library, alone.with_name("libmoh_plugin.so"))
    return alone


def _counts(program: Path, library: Path, **environment: str) -> tuple[list[str], str]:
    ran = subprocess.run(
        [program, library], env=os.environ | environment, capture_output=True, text=True
    )
    return ran.stdout.split(), ran.stderr


def test_dlopen_of_the_plugin_library_registers_nothing(program: Path, fake_library: Path):
    assert _counts(program, fake_library)[0] == ["0", "0"]


def test_dlopen_of_the_other_registers_the_plugins(program: Path, registered: Path):
    assert _counts(program, registered) == (["0", "3"], "")


def test_preloading_does_too(program: Path, registered: Path):
    assert _counts(program, registered, LD_PRELOAD=str(registered)) == (["3", "3"], "")


def test_a_plugin_library_that_is_missing_is_named(program: Path, alone: Path):
    counts, said = _counts(program, alone)
    assert counts == ["0", "0"]
    assert f"did not take {alone.with_name('libmoh_plugin.so')}." in said


# The registries of TensorRT 11 and TensorRT-RTX are laid out differently than that of 10.
@pytest.mark.parametrize("module", ["tensorrt_lean_bindings", "tensorrt_rtx"])
def test_python_knows_the_plugins_of_every_tensorrt(registered: Path, module: str):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {module}: pip install 'moh-deploy[test-tensorrt]'")
    command = [sys.executable, "-c", _PYTHON, str(registered), module]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == OPS


def test_a_tensorrt_that_is_loaded_later_is_found_by_its_name(registered: Path):
    """Polygraphy opens plugins first."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("no TensorRT-RTX: pip install 'moh-deploy[test-tensorrt]'")
    first = "import ctypes, sys; ctypes.CDLL(sys.argv[1])\n"
    command = [sys.executable, "-c", first + _PYTHON, str(registered), "tensorrt_rtx"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", _NOWHERE)
    found = os.environ | {"LD_LIBRARY_PATH": folder_of_the_plain_name()}
    ran = subprocess.run(command, capture_output=True, text=True, env=found)
    assert (json.loads(ran.stdout), ran.stderr) == (OPS, "")
