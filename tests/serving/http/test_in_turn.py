from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from moh_deploy.serving.http.connection import InTurn
from moh_deploy.serving.http.limits import Refusal

LARGE = 2**20


def test_large_work_is_done_one_piece_at_a_time_and_addresses_take_turns():
    done: list[str] = []
    running = threading.Semaphore(1)

    def work(name: str) -> None:
        assert running.acquire(blocking=False)
        assert not gc.isenabled()
        done.append(name)
        running.release()

    async def run() -> None:
        line = InTurn()
        asked = [("many", "m1"), ("many", "m2"), ("many", "m3"), ("few", "f1")]
        await asyncio.gather(
            *(line.do(address, LARGE, lambda name=name: work(name)) for address, name in asked)
        )

    asyncio.run(run())
    assert done == ["m1", "f1", "m2", "m3"]
    assert gc.isenabled()


def test_small_work_is_done_at_once_and_a_refusal_comes_through():
    def refused() -> None:
        raise Refusal(threading.current_thread().name)

    async def run(num_bytes: int) -> str:
        with pytest.raises(Refusal) as caught:
            await InTurn().do("a", num_bytes, refused)
        return caught.value.message

    assert asyncio.run(run(1)) == threading.current_thread().name
    assert asyncio.run(run(LARGE)) != threading.current_thread().name
    assert gc.isenabled()
