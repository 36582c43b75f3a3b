from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from moh_deploy.runtime.tensorrt.builder import BuildSession, build_engine
from moh_deploy.runtime.tensorrt.messages import BuildRequest


class _Config:
    """Takes no measured times but its own, as TensorRT on another GPU."""

    times: bytes | None = None

    def clear_flag(self, flag: object) -> None:
        pass

    def create_timing_cache(self, times: bytes) -> bytes:
        return times

    def set_timing_cache(self, times: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if times:
            return False
        self.times = b"measured here"
        return True

    def get_timing_cache(self) -> SimpleNamespace | None:
        return None if self.times is None else SimpleNamespace(serialize=lambda: self.times)


class _Builder:
    def __init__(self, logger: object) -> None:
        pass

    def create_builder_config(self) -> _Config:
        return _Config()

    def build_serialized_network(self, network: object, config: _Config) -> memoryview:
        return memoryview(b"engine")


class _Network:
    def __init__(self, *given: object) -> None:
        self.network = None

    def parse(self, model: str) -> tuple[()]:
        return ()

    plugins = attentions = types = lambda self: ()


def test_times_of_another_gpu_cost_no_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moh_deploy.runtime.tensorrt.builder.ParsedNetwork", _Network)
    logger = type("ILogger", (), {"__init__": lambda self: None})
    flags = SimpleNamespace(TF32=1)
    session = BuildSession(SimpleNamespace(ILogger=logger, Builder=_Builder, BuilderFlag=flags))
    (tmp_path / "times").write_bytes(b"measured elsewhere")
    request = BuildRequest(
        model="",
        engine=str(tmp_path / "engine"),
        plugin=None,
        creators=(),
        embed_plugin=False,
        compute_capabilities=(),
        profiles=(),
        workspace_bytes=None,
        timing_cache=str(tmp_path / "times"),
        timing_cache_out=str(tmp_path / "new"),
    )
    assert build_engine(session, request, lambda message: None).engine_bytes == 6
    assert (tmp_path / "new").read_bytes() == b"measured here"
