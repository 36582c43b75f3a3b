"""Memory, a stream and a clock on the first GPU, by NVIDIA's driver alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from moh_deploy.runtime.tensorrt.driver import check_status, load_driver
from moh_deploy.system.npz import Array

_Pointer = ctypes.c_void_p


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
        self._closing = ExitStack()
        with ExitStack() as failing:
            failing.push(self._closing)
            self._open()
            failing.pop_all()
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

    def _open(self) -> None:
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
        self._memory = self._closing

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
