import importlib.util
from pathlib import Path

import onnxruntime
import pytest

from moh_deploy import native
from moh_deploy.machine.ask import Failed
from moh_deploy.machine.cpu import CpuRun, probe_cpu, probe_openvino
from moh_deploy.runtime.kernel_use import instruction_sets
from tests.fakes import Fakes
from tests.kernel_library import required_library
from tests.nightly import nightly
from tests.openvino_extension import install_extension


def test_this_machine():
    library = required_library()
    found = probe_cpu()
    assert not isinstance(found.runtime, Failed)
    assert found.runtime.version == onnxruntime.__version__
    assert list(found.runtime.providers) == onnxruntime.get_available_providers()
    assert found.functions == CpuRun(())
    assert found.library == library
    assert found.kernels == CpuRun(tuple(instruction_sets(library)))


@nightly
def test_without_a_library_the_recorded_reason_is_given(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    (tmp_path / native.RECORD_NAME).write_text('{"reason": "cmake was not found"}')
    found = probe_cpu()
    assert found.functions == CpuRun(())
    assert isinstance(found.kernels, Failed)
    assert found.kernels.why.endswith("without CPU kernels: cmake was not found")
    assert "apt install cmake" in str(found.kernels.fix)


@nightly
def test_a_broken_runtime_is_a_finding(fakes: Fakes):
    fakes.module("onnxruntime", "import os\nos.abort()\n")
    found = probe_cpu()
    assert "SIGABRT" in getattr(found.runtime, "why", "")
    assert "SIGABRT" in getattr(found.functions, "why", "")


@nightly
def test_a_wrong_answer_is_a_finding(fakes: Fakes):
    """A runtime that adds a little to everything."""
    fakes.module(
        "sitecustomize",
        "import moh_deploy.runtime.onnxruntime.session as backend\n"
        "run = backend.OrtRunner.run\n"
        "def wrong(self, inputs):\n"
        "    return {name: array + 0.25 for name, array in run(self, inputs).items()}\n"
        "backend.OrtRunner.run = wrong\n",
    )
    found = probe_cpu()
    assert getattr(found.functions, "why", "") == "MoHAttention is computed wrongly: off by 0.25"


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
    assert isinstance(found.kernels, CpuRun), found.kernels
    assert found.extension == folder / native.OPENVINO_NAME
