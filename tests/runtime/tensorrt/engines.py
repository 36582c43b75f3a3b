"""Engine directories for a fake runtime, and programs that run them in a process of their own.

The process finds, before all else, the fake TensorRT and libraries that stand for the driver and
for CUDA's runtime: what it shows is that the calls are right and in order, not that a GPU computes.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.tensorrt.build_plan import BuildPlan
from moh_deploy.runtime.tensorrt.engine_dir import (
    ENGINE_MANIFEST_NAME,
    ENGINE_NAME,
    EngineLayer,
    EngineManifest,
    PluginInfo,
    engine_manifest_text,
)
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, PLUGIN_NAME
from moh_deploy.runtime.tensorrt.profiles import Span
from moh_deploy.system.bounded_file import sha256_of
from tests.fakes import Fakes

ROOT = Path(__file__).parents[3]
_FAKE_RUNTIME = Path(__file__).parent / "fake_runtime"
_SHAPE = ("batch", "seq", 8)
_SPANS = (((1, 2, 4), (1, 3, 16)), ((4, 8, 32), (16, 32, 64)))  # of batch and seq

MANIFEST = EngineManifest(
    backend="tensorrt",
    key="0" * 64,
    package_sha256="0" * 64,
    precision="float32",
    versions={"moh-deploy": "0.1.0", "TensorRT": "10.9.0.34"},
    compute_capabilities=(),
    profiles=tuple({"batch": Span(*batch), "seq": Span(*seq)} for batch, seq in _SPANS),
    inputs=(TensorInfo("x", "float32", _SHAPE),),
    outputs=(TensorInfo("y", "float32", _SHAPE),),
    layers=(EngineLayer("blocks.0.attn", "kernel", "operators", "sparse", None),),
    plugin=None,
    workspace_bytes=None,
    build_seconds=1.0,
)


def write_engine(
    root: Path,
    manifest: EngineManifest = MANIFEST,
    *,
    scale: float = 2.0,
    plugin: Path | None = None,
    embedded: bool = False,
    by_value: bool = False,
) -> Path:
    """Write the directory of an engine that computes y = scale * x."""
    root.mkdir()
    profiles = [[[b[0], s[0], 8], [b[2], s[2], 8]] for b, s in _SPANS]
    described = {"scale": scale, "profiles": profiles, "by_value": by_value}
    described["needs_plugin"] = plugin is not None or embedded
    (root / ENGINE_NAME).write_text(json.dumps(described))
    if plugin is not None:
        (root / PLUGIN_NAME).write_bytes(plugin.read_bytes())
        manifest = replace(manifest, plugin=PluginInfo(PLUGIN_NAME, sha256_of(plugin)))
    if embedded:
        manifest = replace(manifest, plugin=PluginInfo(None, "0" * 64))
    files = {path.name: sha256_of(path) for path in root.iterdir()}
    text = engine_manifest_text(replace(manifest, files=files))
    (root / ENGINE_MANIFEST_NAME).write_text(text)
    return root


def plan_of(package: OnnxPackage, flavour: str = "tensorrt", **changes: object) -> BuildPlan:
    """Return what to build, without anything that may be left out."""
    plan = BuildPlan(
        FLAVOURS[flavour],
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
    return replace(plan, **changes)


def simulate_gpu(fakes: Fakes, *, count: int = 1, module: str = "tensorrt") -> None:
    """Let new processes find a driver, CUDA's runtime and TensorRT, or TensorRT-RTX."""
    fakes.driver(count=count)
    fakes.library("libcudart.so", (_FAKE_RUNTIME / "cudart.c").read_text())
    (fakes.folder / f"{module}.py").write_text((_FAKE_RUNTIME / "tensorrt.py").read_text())


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program with moh_deploy on its path."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(ROOT)]))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
