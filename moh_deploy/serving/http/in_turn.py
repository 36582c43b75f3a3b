"""Read and write large JSON beside the event loop, where it holds up other clients the least."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from moh_deploy.serving.http.refusal import Refusal

T = TypeVar("T")

_INLINE_BYTES = 64 * 1024
"""Up to this size the work is done on the event loop: a thread would take longer."""


class InTurn:
    """Does work on another thread: one piece at a time, and of each address by turns.

    Python reads JSON without a pause, and all threads wait. Two at a time would only take longer.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "large JSON")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def do(self, address: str, num_bytes: int, work: Callable[[], T]) -> T:
        """Return the result of work on so many bytes for a client."""
        if num_bytes <= _INLINE_BYTES:
            return work()
        own = self._turns.setdefault(address, asyncio.Lock())
        async with own:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, _without_collecting, work)


def _without_collecting(work: Callable[[], T]) -> T:
    # The collector would visit a million lists again and again: ten times as long as to read them.
    gc.disable()
    try:
        return work()
    except Refusal as error:
        # Frames would hold the lists until the event loop drops them.
        raise error.with_traceback(None) from None
    finally:
        gc.enable()
