"""OpenVINO and its extension, as doctor finds them: not there, and nightly the real ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from moh_deploy import native
from moh_deploy.machine.ask import Failed
from moh_deploy.machine.cpu import OpenVinoRun, probe_openvino
from tests.fakes import Fakes
from tests.nightly import nightly
from tests.openvino_extension import install_extension


def test_without_openvino_the_command_that_installs_it_is_named(fakes: Fakes):
    fakes.module("openvino", "raise ImportError('no such luck')\n")
    found = probe_openvino()
    assert isinstance(found.release, Failed)
    assert "no such luck" in found.release.why
    assert found.release.fix == "pip install 'moh-deploy[openvino]'"
    assert found.kernels == found.release


def test_without_extension_the_command_that_builds_it_is_named(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fakes.module("openvino", "__version__ = '2026.4.1-22982-0a1b'\n")
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    found = probe_openvino()
    assert (found.release, found.extension) == ("2026.4.1", None)
    assert isinstance(found.kernels, Failed)
    assert found.kernels.why == "there is no libmoh_openvino.so for OpenVINO 2026.4.1"
    command = str(found.kernels.fix).rpartition(", then ")[2]
    assert command.split()[:2] == ["python", "-m"]
    assert importlib.util.find_spec(command.split()[2]) is not None


@nightly
def test_an_operator_runs_in_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = install_extension(monkeypatch, tmp_path)
    found = probe_openvino()
    assert isinstance(found.kernels, OpenVinoRun), found.kernels
    assert found.extension == folder / native.OPENVINO_NAME
