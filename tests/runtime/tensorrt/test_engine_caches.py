"""Engines that write into caches: what has no room in them is refused before the GPU sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_MANIFEST_NAME
from moh_deploy.runtime.tensorrt.models import Engine
from moh_deploy.runtime.tensorrt.profiles import Span
from tests.runtime.tensorrt.engines import MANIFEST, write_engine

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
        (TOLD, 1, 1, 8, r"have 8 places \('past'\), of which 8 are filled: 1 more"),
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
    monkeypatch.setattr(engine_module, "load_engine", lambda root, manifest: object())
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
        ({"past_length": "all - seq"}, "caches.past_length': 'all' is none of"),
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
        engine_module.read_engine_dir(root)


def test_an_engine_of_before_they_were_written_down_is_read(tmp_path: Path):
    path = write_engine(tmp_path / "engine", WRITES) / ENGINE_MANIFEST_NAME
    content = json.loads(path.read_text())
    del content["caches"]
    path.write_text(json.dumps(content))
    assert engine_module.read_engine_dir(path.parent).caches is None
