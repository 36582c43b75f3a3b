"""Tensors of an engine on the GPU, by a stand-in for the engine: memory of the CPU will do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import CacheBuffer, CachesInPlace, TensorInfo
from moh_deploy.runtime.tensorrt import models as engine_module
from moh_deploy.runtime.tensorrt.engine_contexts import GpuContext
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_MANIFEST_NAME, read_engine_dir
from moh_deploy.runtime.tensorrt.loading import on_first_gpu
from moh_deploy.runtime.tensorrt.models import Engine
from moh_deploy.runtime.tensorrt.profiles import Span
from tests.runtime.tensorrt.engines import MANIFEST, write_engine

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


def test_another_stream_waits_for_the_last_run(context: Callable[..., GpuContext], monkeypatch):
    made, streams = context({}), [_Stream(), _Stream()]
    for stream in (streams[0], streams[0], streams[1], streams[1]):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None, item=stream: item)
        made.run({"x": aligned(), "past": aligned()}, 0)
    # The context's scratch memory is in use until then.
    assert [stream.waited_for for stream in streams] == [[], [streams[0]]]
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


# Engines that write into caches: what has no room in them is refused before the GPU sees it.


SIZED = CachesInPlace((CacheBuffer("past", "present", 1),), "total - seq", "seq")
TOLD = replace(SIZED, past_length="filled")
_CACHE = ("batch", "buffer", 2)
WRITES = replace(
    MANIFEST,
    inputs=(
        TensorInfo("ids", "int64", ("batch", "seq")),
        TensorInfo("mask", "int64", ("batch", "total")),
        TensorInfo("past", "float32", _CACHE),
        TensorInfo("filled", "int64", ()),
    ),
    outputs=(TensorInfo("present", "float32", _CACHE),),
    profiles=({"seq": Span(1, 1, 8), "total": Span(1, 8, 8), "buffer": Span(8, 8, 8)},),
    layers=(),
)


class _OnGpu(torch.Tensor):
    is_cuda = True
    device = SimpleNamespace(index=0)


def _gpu(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).as_subclass(_OnGpu)


@pytest.mark.parametrize("kind", [np.asarray, _gpu], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("caches", "seq", "total", "filled", "message"),
    [
        (SIZED, 5, 2, 0, "'total - seq' says that -3 tokens are cached, expected 0 or more"),
        (TOLD, 1, 1, 8, r"have 8 places \('past'\), 8 of them filled: 1 more"),
    ],
    ids=["sized", "told"],
)
def test_tokens_without_room_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Callable[[np.ndarray], Any],
    caches: CachesInPlace,
    seq: int,
    total: int,
    filled: int,
    message: str,
):
    # Whatever is asked of an engine that is none fails in another way.
    monkeypatch.setattr(engine_module, "open_engine", lambda root, manifest: object())
    engine = Engine(write_engine(tmp_path / "engine", replace(WRITES, caches=caches)))
    given = {
        "ids": np.zeros((1, seq), np.int64),
        "mask": np.ones((1, total), np.int64),
        "past": np.zeros((1, 8, 2), np.float32),
        "filled": np.asarray(filled),
    }
    with pytest.raises(ConfigError, match=message):
        engine.run({name: kind(array) for name, array in given.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"past_length": "all - seq"}, "caches.past_length': 'all' is not one of"),
        ({"buffers": ()}, "caches.buffers': is empty"),
        (None, "'caches': no input has the dimension 'buffer'"),
    ],
    ids=["length", "empty", "none"],
)
def test_caches_that_cannot_be_are_refused(
    tmp_path: Path, change: dict[str, Any] | None, message: str
):
    caches = CachesInPlace((CacheBuffer("x", "y", 1),), "batch", "seq")
    wrong = replace(MANIFEST, caches=caches)
    if change is not None:
        wrong = replace(WRITES, caches=replace(SIZED, **change))
    root = write_engine(tmp_path / "engine", wrong)
    with pytest.raises(PackageError, match=message):
        read_engine_dir(root)


def test_an_engine_of_before_they_were_written_down_is_read(tmp_path: Path):
    path = write_engine(tmp_path / "engine", WRITES) / ENGINE_MANIFEST_NAME
    content = json.loads(path.read_text())
    del content["caches"]
    path.write_text(json.dumps(content))
    assert read_engine_dir(path.parent).caches is None
