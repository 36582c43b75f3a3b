"""The calls of TensorRT's runtime that an engine is run with, over memory of the CPU.

Its engines are JSON: `scale`, `profiles` as [[smallest], [largest]] shapes of x, `needs_plugin`,
`by_value`. They compute y = scale * x, and refuse what TensorRT would refuse.
"""

from __future__ import annotations

import ctypes
import json
from enum import Enum, IntEnum
from math import prod

import numpy as np

__version__ = "10.9.0.34"

CALLS: list[str] = []


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass


class Logger(ILogger):
    INFO = ILogger.Severity.INFO


class TensorIOMode(Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorFormat(Enum):
    LINEAR, HWC, CHW16 = range(3)


class DataType(Enum):
    FLOAT, HALF, INT8, INT32 = range(4)


float32, float16, int8, int32 = DataType


class IOutputAllocator:
    def __init__(self) -> None:
        pass


class IDebugListener:
    def __init__(self) -> None:
        pass


class _Creator:
    name, plugin_version, plugin_namespace = "MoHAttention", "1", "moh"


class _Registry:
    def __init__(self) -> None:
        self.all_creators: list[type] = []

    def load_library(self, path: str) -> object:
        CALLS.append(f"load_library {path.rpartition('/')[2]}")
        if self.all_creators:
            return None
        try:
            ctypes.CDLL(path)
        except OSError:
            return None
        self.all_creators = [_Creator]
        return object()


_REGISTRY = _Registry()


def get_plugin_registry() -> _Registry:
    return _REGISTRY


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> ICudaEngine | None:
        CALLS.append("deserialize")
        described = json.loads(content)
        known = _REGISTRY.all_creators or self.engine_host_code_allowed
        if described.get("needs_plugin") and not known:
            text = "getPluginCreator could not find plugin MoHAttention version 1"
            self._logger.log(ILogger.Severity.ERROR, text)
            return None
        return ICudaEngine(described, self._logger)


class ICudaEngine:
    num_io_tensors = 2

    def __init__(self, described: dict, logger: ILogger) -> None:
        self.described, self.logger = described, logger

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, -1, 8)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_format(self, name: str, profile: int = 0) -> TensorFormat:
        return TensorFormat.LINEAR

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, IOutputAllocator] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        CALLS.append(f"profile {index}")
        self.active_optimization_profile, self._shape = index, None
        return index < len(self.engine.described["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "x"
        least, most = self.engine.described["profiles"][self.active_optimization_profile]
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            self._say(f"{shape} is not in profile {self.active_optimization_profile}")
            return False
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self._shape or (-1, -1, 8)
        return (-1, *shape[1:]) if name == "y" and self.engine.described["by_value"] else shape

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: IOutputAllocator) -> bool:
        self._allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        CALLS.append(f"execute on {stream}")
        if self._shape is None or not self._addresses.get("x"):
            self._say("x has no shape or no address")
            return False
        target = self._target(4 * prod(self._shape), stream)
        if not target:
            self._say("y has no address")
            return False
        self._memory(target)[...] = self.engine.described["scale"] * self._memory(
            self._addresses["x"]
        )
        return True

    def _target(self, size: int, stream: int) -> int:
        allocator = self._allocators.get("y")
        if allocator is None:
            return self._addresses.get("y", 0)
        allocator.notify_shape("y", self._shape)
        return allocator.reallocate_output_async("y", 0, size, 256, stream)

    def _memory(self, address: int) -> np.ndarray:
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, self._shape)

    def _say(self, text: str) -> None:
        self.engine.logger.log(ILogger.Severity.ERROR, text)
