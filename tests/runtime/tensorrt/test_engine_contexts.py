"""Tensors of an engine on the GPU, by a stand-in for the engine: memory of the CPU will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.runtime.tensorrt.engine_contexts import GpuContext
from moh_deploy.runtime.tensorrt.loading import on_first_gpu

SHAPE = (2, 3)
OUTPUTS = (TensorInfo("y", "float32", SHAPE), TensorInfo("present", "float32", SHAPE))


class _Context:
    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPE

    def execute_async_v3(self, stream: int) -> bool:
        return True


class _Stream:
    cuda_stream = 1

    def __init__(self) -> None:
        self.waited_for: list[_Stream] = []

    def record_event(self) -> _Stream:
        return self

    def wait_event(self, end: _Stream) -> None:
        self.waited_for.append(end)


ALIASED = {"present": "past"}


def aligned(shape: tuple[int, ...] = SHAPE, *, beyond: int = 0) -> torch.Tensor:
    """Return zeros that begin so many numbers beyond what TensorRT takes, 256 bytes."""
    memory = torch.zeros(128)
    return memory[-memory.data_ptr() % 256 // 4 + beyond :][: torch.Size(shape).numel()].view(shape)


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], GpuContext]:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: _Stream())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def make(aliases: dict[str, str]) -> GpuContext:
        engine = SimpleNamespace(
            get_aliased_input_tensor=aliases.get, create_execution_context=_Context
        )
        return GpuContext(SimpleNamespace(engine=engine, log_tail=str), OUTPUTS)

    return make


def test_cache_that_is_written_in_place_is_given_back(context: Callable[..., GpuContext]):
    made, past = context(ALIASED), aligned()
    outputs = made.run({"x": aligned(), "past": past}, 0)
    addresses = made._context.addresses
    assert outputs["present"] is past
    assert addresses["present"] == addresses["past"] == past.data_ptr()
    assert addresses["y"] == outputs["y"].data_ptr() not in (past.data_ptr(), 0)


@pytest.mark.parametrize("past", [aligned((3, 2)).T, aligned(beyond=1)], ids=["turned", "apart"])
def test_cache_that_would_be_written_into_a_copy_is_refused(
    context: Callable[..., GpuContext], past: torch.Tensor
):
    given = {"x": aligned(), "past": past}
    with pytest.raises(ConfigError, match="'past' is written in place, and is not contiguous or"):
        context(ALIASED).run(given, 0)
    # One that is only read is copied.
    made = context({})
    assert made.run(given, 0)["present"].shape == SHAPE
    assert made._context.addresses["past"] not in (past.data_ptr(), 0)


def test_engine_of_before_there_were_such_caches_has_memory_of_its_own(
    context: Callable[..., GpuContext],
):
    made = context({})
    del made._loaded.engine.get_aliased_input_tensor
    outputs = made.run({"x": aligned(), "past": aligned()}, 0)
    addresses = made._context.addresses
    assert addresses["present"] == outputs["present"].data_ptr() != addresses["past"]


def test_tensors_that_are_empty_have_an_address(context: Callable[..., GpuContext]):
    made = context({})
    made._context.get_tensor_shape = lambda name: (2, 0)
    made.run({"x": aligned(), "past": torch.zeros(2, 0)}, 0)
    assert made._context.addresses["past"] != 0
    assert made._context.addresses["y"] != 0


def test_another_stream_waits_for_the_last_run(
    context: Callable[..., GpuContext], monkeypatch: pytest.MonkeyPatch
):
    made, streams = context({}), [_Stream(), _Stream()]
    for stream in (streams[0], streams[0], streams[1], streams[1]):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None, one=stream: one)
        made.run({"x": aligned(), "past": aligned()}, 0)
    # The context's scratch memory is in use until then.
    assert [one.waited_for for one in streams] == [[], [streams[0]]]
    # While a graph is captured nothing outside of it can be waited for.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams[0])
    made.run({"x": aligned(), "past": aligned()}, 0)
    assert streams[0].waited_for == []


def test_first_gpu_is_made_current_whatever_torch_has_chosen(monkeypatch: pytest.MonkeyPatch):
    made_current: list[int] = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        made_current.append(index)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    for is_initialized, expected in ((False, []), (True, [0])):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda found=is_initialized: found)
        with on_first_gpu():
            assert made_current == expected
