"""TensorRT-RTX in a process of its own: it builds engines without a GPU."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from tests.cuda.trt import builds

Range = tuple[Sequence[int], Sequence[int], Sequence[int]]
_MODEL = "model.onnx"


@dataclass(frozen=True)
class Built:
    """What came of a build.

    Attributes:
        layers: Types of the network's layers.
        plugins: Names of its plugins, in order.
        outputs: Name, shape and dtype of each.
        engine: The engine's bytes; empty: there is none.
        log: Warnings and errors, and what was said of plugins, by TensorRT.
        stderr: Where the plugins write what they have to say without a logger: TensorRT-RTX hands
            over none when it loads a library.
    """

    loaded: bool
    parsed: bool
    errors: list[str]
    layers: list[str]
    plugins: list[str]
    outputs: list[list]
    engine: bytes
    log: str
    stderr: str


def build(
    model: onnx.ModelProto,
    folder: Path,
    *,
    library: Path | None,
    profiles: Sequence[Mapping[str, Range]] = (),
    compute_capabilities: Sequence[str] = ("SM86",),
) -> Built:
    """Parse a model and build an engine of it."""
    if importlib.util.find_spec("tensorrt_rtx_libs") is None:
        pytest.skip("no TensorRT-RTX: pip install 'moh-deploy[test-tensorrt]'")
    (folder / _MODEL).write_bytes(model.SerializeToString())
    request = {
        "model": str(folder / _MODEL),
        "library": None if library is None else str(library),
        "profiles": list(profiles),
        "compute_capabilities": list(compute_capabilities),
        "engine": str(folder / "model.engine"),
    }
    (folder / "request.json").write_text(json.dumps(request))
    ran = subprocess.run(
        [sys.executable, str(builds.HERE / "rtx_build.py"), str(folder / "request.json")],
        env=os.environ | {"LD_LIBRARY_PATH": folder_of_the_plain_name()},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    size = found.pop("engine_bytes")
    engine = (folder / "model.engine").read_bytes() if size else b""
    return Built(engine=engine, stderr=ran.stderr, **found)


def folder_of_the_plain_name() -> str:
    """Return a folder with `libtensorrt_rtx.so`, which the parser looks for when it meets a plugin.

    The package has it only under its versioned name, and without this the process aborts.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec.origin is not None
    folder = builds.BUILDS / "rtx"
    target = Path(spec.origin).parent / "libtensorrt_rtx.so.1"
    folder.mkdir(parents=True, exist_ok=True)
    # The versioned name, too, by which programs find the library before Python has loaded it.
    for name in ("libtensorrt_rtx.so", target.name):
        link = folder / name
        if not link.is_symlink() or link.resolve() != target.resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    return str(folder)
