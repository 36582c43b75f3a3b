"""Where kernels run, and how their time is taken: a GPU, or this machine's CPU for a rehearsal."""

import gc
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Call = Callable[[], object]


class Device(Protocol):
    """What the measurements need of a device."""

    @property
    def kind(self) -> str:
        """The device's name in torch."""
        ...

    def stream(self) -> int | None:
        """Return the stream that torch enqueues to now."""
        ...

    def synchronize(self) -> None:
        """Wait until everything is done; raise what went wrong."""
        ...

    def warm_up(self, calls: Sequence[Call]) -> None:
        """Make two of these calls: what is loaded or compiled at the first is not captured."""
        ...

    def capture(self, calls: Sequence[Call]) -> Call:
        """Return a call that does all of these, without the time that enqueueing each one takes."""
        ...

    def compiled(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Return a function as torch.compile makes it, for the sizes of its first call."""
        ...

    def elapsed_us(self, replay: Call) -> float:
        """Return how long the device is busy with what a call enqueues."""
        ...

    def cache_bytes(self) -> int:
        """Return the size of the last cache."""
        ...

    def release(self) -> None:
        """Give back the memory of graphs that are gone."""
        ...


class Cuda:
    """The current GPU: CUDA graphs, and events around them."""

    kind = "cuda"

    def stream(self) -> int | None:
        return torch.cuda.current_stream().cuda_stream

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def warm_up(self, calls: Sequence[Call]) -> None:
        # Not on the default stream: libraries choose what they do by stream, too.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()

    def capture(self, calls: Sequence[Call]) -> Call:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        # torch.cuda.graph collects garbage first, which takes as long as all else here. Collected
        # during a capture, a graph of an earlier candidate would end it.
        gc.disable()
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                graph.capture_begin()
                try:
                    for call in calls:
                        call()
                finally:
                    graph.capture_end()
        finally:
            gc.enable()
        return graph.replay

    def compiled(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        torch.compiler.reset()  # or the sizes of earlier steps would count against its limit
        return torch.compile(function, dynamic=False)

    def elapsed_us(self, replay: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        replay()  # keeps the GPU busy until the timed one is enqueued
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000

    def release(self) -> None:
        torch.cuda.empty_cache()

    def cache_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


class Host:
    """The CPU: calls are made one after the other, and the clock is that on the wall."""

    kind = "cpu"

    def stream(self) -> int | None:
        return None

    def synchronize(self) -> None:
        pass

    def warm_up(self, calls: Sequence[Call]) -> None:
        for call in calls[:2]:
            call()

    def capture(self, calls: Sequence[Call]) -> Call:
        def replay() -> None:
            for call in calls:
                call()

        return replay

    def compiled(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return function  # a rehearsal is about what surrounds it

    def elapsed_us(self, replay: Call) -> float:
        start = time.perf_counter()
        replay()
        return (time.perf_counter() - start) * 1e6

    def release(self) -> None:
        pass

    def cache_bytes(self) -> int:
        return 0


DEVICES: dict[str, Callable[[], Device]] = {"cuda": Cuda, "cpu": Host}
