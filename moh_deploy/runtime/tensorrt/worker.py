"""The process that builds: `python -m moh_deploy.runtime.tensorrt.worker FLAVOUR DESCRIPTOR`.

It has TensorRT to itself: its parser and builder may abort. What it has to say goes to the file
descriptor, as messages; what TensorRT logs, to stderr.
"""

from __future__ import annotations

import ctypes
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.ops.cases import numpy_dtype
from moh_deploy.runtime.tensorrt import messages
from moh_deploy.runtime.tensorrt.builder import DTYPE_NAMES, BuildFailed, BuildSession, build_engine
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, Flavour
from moh_deploy.system.npz import Array
from moh_deploy.system.nvidia_driver import check_status, load_driver, read_driver

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def main(flavour_name: str, descriptor: str) -> None:
    if sys.platform == "linux":
        # It is to end with its parent: nobody would take what is built.
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    with os.fdopen(int(descriptor), "w", encoding="utf-8") as channel:

        def tell(message: messages.Message) -> None:
            channel.write(messages.encode(message))
            channel.flush()

        try:
            _serve(FLAVOURS[flavour_name], tell)
        # As number and text, from which the other process raises an OSError of its own.
        except OSError as error:
            tell(messages.Failure(f"{error.strerror}: {error.filename}", error.errno))
        except BuildFailed as error:
            tell(messages.Failure(str(error)))


def _serve(flavour: Flavour, tell: Callable[[messages.Message], None]) -> None:
    trt = import_module(flavour.module)
    # Before a request is read: what is there decides whether anything has to be built at all.
    tell(messages.Stack(trt.__version__, *(() if flavour.targets else _gpu())))
    session = BuildSession(trt)
    for line in sys.stdin:  # until nobody wants anything more
        request = messages.decode(line)
        if isinstance(request, messages.TimingRequest):
            tell(time_networks(session, request, tell))
        else:
            assert isinstance(request, messages.BuildRequest)
            tell(build_engine(session, request, tell))


def _gpu() -> tuple[str, ...]:
    """Return name and compute capability of the first GPU, and the driver's CUDA version."""
    try:
        driver = read_driver()
    except BackendError:  # TensorRT says it in its own words when it is to build.
        return ()
    return driver.gpus[0].name, driver.gpus[0].dotted, driver.cuda


# Memory, a stream and a clock on the first GPU, by NVIDIA's driver alone.

_Pointer = ctypes.c_void_p
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile


class DeviceWork:
    """Work on the first GPU, in the context that TensorRT uses, until the block is left.

    Attributes:
        stream: For whoever enqueues.

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
# A graph is to be long beside what a launch costs, and short beside a round.
_GRAPH_MS, _MOST_CAPTURED_RUNS = 1.0, 32
# Long beside what an event and a wait cost, and short beside what a build takes.
_ROUND_MS = 5.0
_MOST_RUNS = 200
# Lengths are held within the keys that there are.
_ALL_KEYS = 1 << 30

GpuClock = Callable[[Callable[[], None], int], float]
"""(call, count) -> milliseconds of that many calls, one behind the other."""


def time_networks(
    session: BuildSession, request: messages.TimingRequest, tell: Callable[[messages.Message], None]
) -> messages.TimingAnswer:
    """Build each network, and time them in turns at the usual sizes of every profile.

    A network that cannot be built or run has no time; the others have.
    """
    runtime = session.trt.Runtime(session.logger)
    failed: dict[str, str] = {}
    engines: dict[str, Any] = {}
    for name, build in request.networks.items():
        try:
            answer = build_engine(session, build, tell)
            if answer.errors:
                refused = ", ".join(f"{error.operator}: {error.text}" for error in answer.errors)
                raise BuildFailed(f"the parser refuses {refused}")
            assert build.engine is not None
            engine = runtime.deserialize_cuda_engine(Path(build.engine).read_bytes())
            if engine is None:
                raise BuildFailed("TensorRT cannot load what it built")
            engines[name] = engine
        except BuildFailed as error:
            failed[name] = str(error)
    if not engines:
        return messages.TimingAnswer({}, failed)
    tell(messages.BuildStep(f"timing {', '.join(engines)}"))
    try:
        with DeviceWork() as gpu:
            times = _times(engines, request, gpu, failed)
    except BackendError as error:
        return messages.TimingAnswer({}, failed | dict.fromkeys(engines, error.message))
    return messages.TimingAnswer(times, failed)


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


def _times(
    engines: dict[str, Any],
    request: messages.TimingRequest,
    gpu: DeviceWork,
    failed: dict[str, str],
) -> dict[str, tuple[float, ...]]:
    """Return the times of each profile; an engine that does not run moves to `failed`."""
    profiles = next(iter(request.networks.values())).profiles
    found: list[dict[str, float]] = []
    for index in range(max(1, len(profiles))):
        # A network without dynamic sizes has no profile.
        shapes = {name: shape[1] for name, shape in profiles[index].items()} if profiles else {}
        with gpu.scope():
            feeds = _feeds(next(iter(engines.values())), request, shapes)
            # One copy of the inputs for all: they only read it.
            given = {name: (array.shape, gpu.upload(array)) for name, array in feeds.items()}
            calls: dict[str, Callable[[], None]] = {}
            runs: dict[str, int] = {}
            for name, engine in list(engines.items()):
                try:
                    run = _bound(engine, index, given, gpu)
                    gpu.elapsed_ms(run, 1)  # scores of float32 may be more than the memory
                    one_ms = max(gpu.elapsed_ms(run, 1), 1e-6)
                    runs[name] = max(1, min(_MOST_CAPTURED_RUNS, round(_GRAPH_MS / one_ms)))
                    calls[name] = gpu.captured(run, runs[name])
                except (BuildFailed, BackendError) as error:
                    failed[name] = error.message if isinstance(error, BackendError) else str(error)
                    del engines[name]
            if not engines:
                return {}
            times = time_in_turns(calls, gpu.elapsed_ms)
            found.append({name: times[name] / runs[name] for name in calls})
    return {name: tuple(times[name] for times in found) for name in engines}


def _feeds(
    engine: Any, request: messages.TimingRequest, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Return arrays for the inputs, of the usual sizes of a profile: the same ones each time."""
    rng, feeds = np.random.default_rng(0), {}
    for name, fill in request.fills.items():
        shape = shapes.get(name) or tuple(engine.get_tensor_shape(name))
        array: Array
        if fill == "random":
            array = rng.standard_normal(shape)
        elif fill == "gates":
            array = rng.random(shape) < request.open_share
        else:
            values = {"filled": _ALL_KEYS, "seen": 1, "ranges": (0, _ALL_KEYS), "zero": 0}
            array = np.broadcast_to(np.array(values[fill]), shape)
        feeds[name] = array.astype(_dtype(engine, name))
    return feeds


def _dtype(engine: Any, name: str) -> np.dtype[Any]:
    return numpy_dtype(DTYPE_NAMES[engine.get_tensor_dtype(name).name])


def _bound(
    engine: Any,
    profile: int,
    given: Mapping[str, tuple[tuple[int, ...], int]],
    gpu: DeviceWork,
) -> Callable[[], None]:
    """Return a call that enqueues one run."""
    context = engine.create_execution_context()
    if context is None:
        raise BuildFailed("TensorRT makes no execution context")
    done = [context.set_optimization_profile_async(profile, gpu.stream)]
    for tensor, (shape, address) in given.items():
        done.append(context.set_input_shape(tensor, shape))
        done.append(context.set_tensor_address(tensor, address))
    for tensor in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if tensor not in given:
            elements = int(np.prod(tuple(context.get_tensor_shape(tensor))))
            address = gpu.allocate(_dtype(engine, tensor).itemsize * elements)
            done.append(context.set_tensor_address(tensor, address))
    if not all(done):
        raise BuildFailed("TensorRT refuses the inputs")

    def run() -> None:
        if not context.execute_async_v3(gpu.stream):
            raise BuildFailed("TensorRT refuses to run it")

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])
