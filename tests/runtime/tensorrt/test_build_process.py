from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt import build_process
from moh_deploy.runtime.tensorrt.build_process import BuildProcess
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


def test_a_process_that_dies_while_it_speaks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
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
