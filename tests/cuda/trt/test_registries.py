"""The library in the plugin registries of real TensorRTs, which need no GPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.trt import builds

HEADERS = {builds.version_of(folder): folder for folder in builds.tensorrt_headers()}
OPS = ["MoHAggregatedAttention", "MoHAttention", "MoHRouter"]
_INSTALL = "pip install 'moh-deploy[test-tensorrt]'"


def lean(major: int) -> Path:
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    if spec is None or spec.origin is None:
        pytest.skip(f"no TensorRT lean runtime: {_INSTALL}")
    path = Path(spec.origin).parent / f"libnvinfer_lean.so.{major}"
    if not path.is_file():
        pytest.skip(f"no TensorRT {major} lean runtime: {_INSTALL}")
    return path


def _program(headers: Path) -> Path:
    return builds.build(
        "registry", [builds.HERE / "registry.cc"], headers=headers, kind=builds.PROGRAM
    )


@pytest.mark.parametrize("version", HEADERS or ["10"])
def test_a_program_loads_creates_and_takes_out(fake_library: Path, version: str):
    """The registry's interface differs between major versions: headers and runtime are of one."""
    major = int(version.split(".")[0])
    program = _program(HEADERS.get(version) or builds.required_headers())
    ran = subprocess.run([program, lean(major), fake_library], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    loaded, *steps = ran.stdout.splitlines()
    assert loaded.startswith(f"version {major}")
    assert steps == [
        *("before 0", "loaded 1", "after 3", "kind PLUGIN CREATOR_V3ONE"),
        *("created MoHRouter 1", "created MoHAttention 0", "created MoHAggregatedAttention 0"),
        *("deregistered 0", "again 3"),
    ]
    assert "MoHAttention (layer): field top_k is unknown; expected one of" in ran.stderr


def test_a_registry_takes_nothing_else_for_a_library():
    program = _program(builds.required_headers())
    ran = subprocess.run([program, lean(10), builds.harness()], capture_output=True, text=True)
    assert ran.stdout.splitlines()[1:] == ["before 0", "loaded 0", "after 0"]


def test_python_loads_creates_and_takes_out(fake_library: Path):
    if importlib.util.find_spec("tensorrt_lean_bindings") is None:
        pytest.skip(f"no TensorRT lean runtime: {_INSTALL}")
    script = builds.HERE / "lean_registry.py"
    ran = subprocess.run([sys.executable, script, fake_library], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    assert found.pop("version").startswith("11.")
    assert found == {
        "before": [],
        "loaded": True,
        "after": OPS,
        "good": "MoHRouter",
        "bad": None,
        "deregistered": [],
    }
    assert "MoHRouter (layer): field top_k is -2; expected 0 or more." in ran.stderr
