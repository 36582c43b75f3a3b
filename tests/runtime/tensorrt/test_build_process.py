from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt import build_process
from moh_deploy.runtime.tensorrt.build_process import BuildProcess
from moh_deploy.runtime.tensorrt.builder import BuildSession, build_engine
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.messages import BuildRequest
from moh_deploy.system.progress import SilentProgress
from tests.cuda.trt import builds
from tests.nightly import nightly
from tests.trt_packages import required_rtx

RTX = FLAVOURS["tensorrt-rtx"]


@pytest.fixture
def request_of_nothing(tmp_path: Path) -> BuildRequest:
    required_rtx()
    return BuildRequest(
        model=str(tmp_path / "none.onnx"),
        engine=None,
        plugin=str(builds.plugin_on_fakes()),
        creators=("MoHAttention",),
        embed_plugin=False,
        compute_capabilities=("8.6",),
        profiles=(),
        workspace_bytes=None,
    )


def _fails(tmp_path: Path, request: BuildRequest, **changes: object) -> str:
    changed = BuildRequest(**(vars(request) | changes))
    with (
        BuildProcess(RTX, folder=tmp_path, log=tmp_path / "log") as process,
        pytest.raises(BackendError) as failed,
    ):
        process.build(changed, SilentProgress())
    return failed.value.message


@nightly
def test_a_library_without_a_creator_is_told(tmp_path: Path, request_of_nothing: BuildRequest):
    message = _fails(tmp_path, request_of_nothing, creators=("MoHAttention", "MoHTokenConv"))
    assert "has no creator of MoHTokenConv, version 1, namespace moh" in message


def test_a_library_that_is_not_taken_is_told(tmp_path: Path, request_of_nothing: BuildRequest):
    message = _fails(tmp_path, request_of_nothing, plugin=str(tmp_path / "none.so"))
    assert "the plugin registry did not take" in message
    assert message.startswith("TensorRT-RTX: ")


def test_a_process_that_dies_while_it_speaks_is_told(tmp_path: Path, monkeypatch):
    (tmp_path / "dies.py").write_text(
        """import os, sys; os.write(int(sys.argv[2]), b'{"Stack": {"ver'); os.abort()"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(build_process, "_WORKER", "dies")
    installed = replace(RTX, module="json")
    with (
        pytest.raises(BackendError, match="ended the process that builds with SIGABRT"),
        BuildProcess(installed, folder=tmp_path, log=tmp_path / "log"),
    ):
        pass


def test_the_process_ends_with_the_block(tmp_path: Path):
    required_rtx()
    with BuildProcess(RTX, folder=tmp_path, log=tmp_path / "log") as process:
        assert process.stack.version.count(".") >= 2
        assert process.stack.gpu is None  # it does not matter
        pid = process.pid
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


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
