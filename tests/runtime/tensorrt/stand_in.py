"""A module `tensorrt` that is TensorRT-RTX, on a machine that seems to have a GPU: all of
`--backend tensorrt`, but for what the real one would do with the GPU.

It can be told to sleep or to abort where an engine is built, and how long engines take to run: then
it has a runtime, whose engines compute nothing and let the driver's clock go on.
"""

import os
from pathlib import Path

import pytest

from tests.cuda.trt import builds
from tests.cuda.trt.rtx import folder_of_the_plain_name

VERSION = "11.0.0.1"
_MODULE = f"""
import ctypes, os, time
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
        record, asked = os.environ.get("STAND_IN_CONFIG"), _asked(config)
        if record is not None:
            open(record, "a").write(f"{{asked}}\\n")
        built = super().build_serialized_network(network, config)
        if built is not None:
            _SEEN[bytes(built)] = (_way(network), _tensors(network))
        return built

# What TensorRT-RTX has no engines of is asked for, written down and left out.
def _asked(config):
    asked = []
    if config.get_flag(BuilderFlag.VERSION_COMPATIBLE):
        config.clear_flag(BuilderFlag.VERSION_COMPATIBLE)
        asked.append("VERSION_COMPATIBLE")
    level = _LEVELS.pop(id(config), None)
    return " ".join([*asked, level.name] if level else asked)

_LEVELS, _SEEN = {{}}, {{}}
tensorrt_rtx.IBuilderConfig.hardware_compatibility_level = property(
    lambda config: _LEVELS.get(id(config)),
    lambda config, level: _LEVELS.__setitem__(id(config), level),
)

def _layers(network):
    return [network.get_layer(i) for i in range(network.num_layers)]

def _way(network):
    kinds = {{layer.type.name for layer in _layers(network)}}
    return ("kernel" if "PLUGIN_V3" in kinds else "fused" if "ATTENTION_INPUT" in kinds
            else "function")

def _tensors(network):
    of = ((network.num_inputs, network.get_input), (network.num_outputs, network.get_output))
    return [(tensor.name, tensor.dtype, tuple(tensor.shape))
            for count, get in of for tensor in map(get, range(count))]

class _Engine:
    def __init__(self, way, tensors):
        self.way, self.tensors = way, tensors
        self.num_io_tensors = len(tensors)
    def get_tensor_name(self, index):
        return self.tensors[index][0]
    def get_tensor_dtype(self, name):
        return {{one: dtype for one, dtype, _ in self.tensors}}[name]
    def create_execution_context(self):
        return _Context(self)

class _Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {{}}, set()
    def set_optimization_profile_async(self, index, stream):
        return stream != 0
    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True
    def set_tensor_address(self, name, address):
        self.addresses.add(name)
        return address != 0
    def get_tensor_shape(self, name):
        shape = {{one: shape for one, _, shape in self.engine.tensors}}[name]
        return tuple(8 if size < 0 else size for size in shape)
    def execute_async_v3(self, stream):
        assert self.addresses == {{name for name, _, _ in self.engine.tensors}}
        times = dict(pair.split("=") for pair in os.environ["STAND_IN_TIMES"].split(","))
        took = times.get(self.engine.way)
        if took is None:
            return False
        ctypes.CDLL("libcuda.so.1").stand_in_run(ctypes.c_float(float(took)))
        return True

if "STAND_IN_TIMES" in os.environ:
    class Runtime:
        def __init__(self, logger):
            pass
        def deserialize_cuda_engine(self, content):
            return _Engine(*_SEEN[content])
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
