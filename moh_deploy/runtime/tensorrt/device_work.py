"""Time engines on the first GPU, by NVIDIA's driver alone: memory, a stream and a clock."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.runtime.tensorrt.builder import DTYPE_NAMES
from moh_deploy.system.npz import Array
from moh_deploy.system.nvidia_driver import check_status, load_driver

_Pointer = ctypes.c_void_p
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile


class RunRefused(Exception):
    """TensorRT does not run an engine; its log says why."""


class DeviceWork:
    """Work on the first GPU, in the context that TensorRT uses, until the block is left.

    Attributes:
        stream: For the enqueued runs.

    Raises:
        BackendError: The driver is missing or refuses; from every method.
    """

    stream: int
    _memory: ExitStack

    def __enter__(self) -> DeviceWork:
        self._cuda = load_driver()
        with ExitStack() as failing:
            # If anything below raises, what is there is given back; else `__exit__` does so.
            self._closing = self._memory = failing
            device, context = ctypes.c_int(), _Pointer()
            self._call("cuDeviceGet", ctypes.byref(device), 0)
            # The one that the runtime of CUDA uses, and so TensorRT and the plugins do.
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
            self._closing.callback(self._try, "cuDevicePrimaryCtxRelease_v2", device)
            self._call("cuCtxSetCurrent", context)
            stream = self._made("cuStreamCreate", "cuStreamDestroy_v2")
            assert stream.value is not None
            self.stream = stream.value
            self._event = self._made("cuEventCreate", "cuEventDestroy_v2")
            self._other_event = self._made("cuEventCreate", "cuEventDestroy_v2")
            self._closing = self._memory = failing.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Free what is allocated within the block when it is left."""
        outer, self._memory = self._memory, ExitStack()
        try:
            with self._memory:
                yield
        finally:
            self._memory = outer

    def allocate(self, size: int) -> int:
        """Return the address of memory, which holds anything."""
        address = ctypes.c_uint64()
        # Nothing cannot be allocated.
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        self._memory.callback(self._try, "cuMemFree_v2", address)
        return address.value

    def upload(self, array: Array) -> int:
        """Return the address of a copy of an array."""
        address, content = self.allocate(array.nbytes), array.tobytes()
        self._call(
            "cuMemcpyHtoD_v2", ctypes.c_uint64(address), content, ctypes.c_size_t(len(content))
        )
        return address

    def captured(self, call: Callable[[], None], count: int) -> Callable[[], None]:
        """Return a call that launches what `count` calls enqueue, as a CUDA graph.

        A small network takes the GPU a few microseconds, and Python ten or more to enqueue.

        Raises:
            BackendError: What they enqueue cannot be captured.
        """
        stream, graph, launched = _Pointer(self.stream), _Pointer(), _Pointer()
        self._call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            for _ in range(count):
                call()
        finally:
            # Also of a call that was refused: the stream has to leave its capture.
            ended = self._cuda.cuStreamEndCapture(stream, ctypes.byref(graph))
        check_status(self._cuda, "cuStreamEndCapture", ended)
        self._memory.callback(self._try, "cuGraphDestroy", graph)
        flags = ctypes.c_ulonglong(0)
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(launched), graph, flags)
        self._memory.callback(self._try, "cuGraphExecDestroy", launched)
        return lambda: self._call("cuGraphLaunch", launched, stream)

    def elapsed_ms(self, call: Callable[[], None], count: int) -> float:
        """Return the milliseconds that the GPU takes for what `count` calls enqueue."""
        start, end, stream = self._event, self._other_event, _Pointer(self.stream)
        self._call("cuEventRecord", start, stream)
        for _ in range(count):
            call()
        self._call("cuEventRecord", end, stream)
        self._call("cuEventSynchronize", end)
        elapsed = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(elapsed), start, end)
        return elapsed.value

    def _made(self, create: str, destroy: str) -> ctypes.c_void_p:
        handle = _Pointer()
        self._call(create, ctypes.byref(handle), 0)
        self._closing.callback(self._try, destroy, handle)
        return handle

    def _call(self, function: str, *arguments: object) -> None:
        check_status(self._cuda, function, getattr(self._cuda, function)(*arguments))

    def _try(self, function: str, *arguments: object) -> None:
        # Whatever went wrong was said where it did; here things are only given back.
        getattr(self._cuda, function)(*arguments)


_ROUNDS = 11
_WARM_UP_RUNS = 10
# Long beside what an event and a wait cost, and short beside what a build takes.
_ROUND_MS = 5.0
_MOST_RUNS = 200
GpuClock = Callable[[Callable[[], None], int], float]
"""(call, count) -> milliseconds of that many calls, one behind the other."""


def time_in_turns(calls: Mapping[str, Callable[[], None]], clock: GpuClock) -> dict[str, float]:
    """Return the median milliseconds of each call: rounds of several calls, by turns.

    By turns, so that a clock that is raised or lowered meets all of them.
    """
    counts: dict[str, int] = {}
    for name, call in calls.items():
        each = clock(call, _WARM_UP_RUNS) / _WARM_UP_RUNS
        counts[name] = max(1, min(_MOST_RUNS, round(_ROUND_MS / max(each, 1e-6))))
    rounds = [
        {name: clock(call, counts[name]) / counts[name] for name, call in calls.items()}
        for _ in range(_ROUNDS)
    ]
    return {name: statistics.median(times[name] for times in rounds) for name in calls}


def bound(
    engine: Any,
    profile: int,
    given: Mapping[str, tuple[tuple[int, ...], int]],
    gpu: DeviceWork,
) -> Callable[[], None]:
    """Return a call that enqueues one run.

    Args:
        profile: Which of the engine's profiles.
        given: Name of each input to shape and address.

    Raises:
        RunRefused: TensorRT refuses, or the shape of an output is not known before the run.
    """
    context = engine.create_execution_context()
    if context is None:
        raise RunRefused("TensorRT makes no execution context")
    done = [context.set_optimization_profile_async(profile, gpu.stream)]
    for tensor, (shape, address) in given.items():
        done.append(context.set_input_shape(tensor, shape))
        done.append(context.set_tensor_address(tensor, address))
    ask = getattr(engine, "get_aliased_input_tensor", None)  # TensorRT 10.15
    for tensor in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if tensor in given:
            continue
        # A cache that is written in place is its own output.
        if ask is not None and (written := ask(tensor)):
            done.append(context.set_tensor_address(tensor, given[written][1]))
            continue
        shape = tuple(context.get_tensor_shape(tensor))
        if min(shape, default=0) < 0:
            raise RunRefused(f"the shape of '{tensor}' depends on values: {list(shape)}")
        size = tensor_dtype(engine, tensor).itemsize * int(np.prod(shape))
        done.append(context.set_tensor_address(tensor, gpu.allocate(size)))
    if not all(done):
        raise RunRefused("TensorRT refuses the inputs")

    def run() -> None:
        if not context.execute_async_v3(gpu.stream):
            raise RunRefused("TensorRT refuses to run it")

    return run


def tensor_dtype(engine: Any, name: str) -> np.dtype[Any]:
    """Return the dtype of an input or output."""
    return numpy_dtype(DTYPE_NAMES[engine.get_tensor_dtype(name).name])
