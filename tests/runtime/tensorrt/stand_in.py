"""A module `tensorrt` that is TensorRT-RTX, on a machine that seems to have a GPU: all of
`--backend tensorrt`, but for what the real one would do with the GPU.

It can be told to sleep or to abort where an engine is built.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cuda.trt import builds
from tests.cuda.trt.rtx import folder_of_the_plain_name

VERSION = "11.0.0.1"
_MODULE = f"""
import os, time
import tensorrt_rtx
from tensorrt_rtx import *
__version__ = os.environ.get("STAND_IN_VERSION", "{VERSION}")

class Builder(tensorrt_rtx.Builder):
    def build_serialized_network(self, network, config):
        behaviour = os.environ.get("STAND_IN", "")
        if behaviour == "abort":
            print("ERROR: out of everything", flush=True)
            os.abort()
        if behaviour.startswith("sleep "):
            open(behaviour.removeprefix("sleep "), "w").write(str(os.getpid()))
            time.sleep(3600)
        return super().build_serialized_network(network, config)
"""


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return variables with which Python finds the stand-in."""
    (folder / "tensorrt").mkdir(parents=True)
    (folder / "tensorrt" / "__init__.py").write_text(_MODULE)
    driver = builds.build("driver", [builds.HERE / "driver.cc"])
    (folder / "libcuda.so.1").symlink_to(driver)
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "LD_LIBRARY_PATH": os.pathsep.join([str(folder), folder_of_the_plain_name()]),
        **settings,
    }


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Let this process, and those that it starts, find the stand-in."""
    for name, value in environment(folder, **settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(folder)
