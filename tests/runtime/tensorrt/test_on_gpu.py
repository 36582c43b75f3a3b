"""Tensors of an engine on the GPU, by a stand-in for the engine: memory of the CPU will do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from moh_deploy.package import TensorInfo
from moh_deploy.runtime.tensorrt.on_gpu import GpuContext

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


def run(monkeypatch: pytest.MonkeyPatch, engine: SimpleNamespace, past: torch.Tensor):
    stream = SimpleNamespace(cuda_stream=1)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
    context = _Context()
    engine.create_execution_context = lambda: context
    loaded = SimpleNamespace(engine=engine, log_tail=str)
    given = {"x": torch.zeros(SHAPE), "past": past}
    return GpuContext(loaded, OUTPUTS).run(given, 0), context.addresses


def test_cache_that_is_written_in_place_is_given_back(monkeypatch: pytest.MonkeyPatch):
    engine = SimpleNamespace(get_aliased_input_tensor={"present": "past"}.get)
    past = torch.zeros(SHAPE)
    outputs, addresses = run(monkeypatch, engine, past)
    assert outputs["present"] is past
    assert addresses["present"] == addresses["past"] == past.data_ptr()
    assert addresses["y"] == outputs["y"].data_ptr() not in (past.data_ptr(), 0)


def test_engine_of_before_there_were_such_caches_has_memory_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
):
    outputs, addresses = run(monkeypatch, SimpleNamespace(), torch.zeros(SHAPE))
    assert addresses["present"] == outputs["present"].data_ptr() != addresses["past"]
