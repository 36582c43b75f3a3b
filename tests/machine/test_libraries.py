from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy import __version__, native
from moh_deploy.machine.ask import Failed
from moh_deploy.machine.gpu import LibraryFacts, probe_ort_cuda
from moh_deploy.machine.tensorrt import probe_plugin
from tests.fakes import Fakes

_RETURNS = 'const char* moh_{name}_version() {{ return "{version}"; }}'


def _plugin(fakes: Fakes, version: str = __version__, more: str = "") -> Path:
    code = _RETURNS.format(name="plugin", version=version) + more
    return fakes.library("libmoh_plugin.so", code)


def test_one_of_this_version_is_loaded(fakes: Fakes):
    found = probe_plugin(_plugin(fakes))
    assert isinstance(found, LibraryFacts)
    assert found.path == fakes.folder / "libmoh_plugin.so"
    assert (found.code.machine, found.code.ptx) == ((), ())
    assert found.triton == ()


def test_it_says_which_kernels_of_triton_it_holds(fakes: Fakes):
    kernels = (
        'const char* moh_plugin_triton_kernels() { return "sm_90 float16 64\\nsm_100 x 1\\n"; }'
    )
    found = probe_plugin(_plugin(fakes, more=kernels))
    assert isinstance(found, LibraryFacts)
    assert found.triton == ("sm_90 float16 64", "sm_100 x 1")


def test_the_installed_one_is_meant(fakes: Fakes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "FOLDER", fakes.folder)
    missing = probe_plugin()
    assert isinstance(missing, Failed)
    assert missing.why == f"there is no libmoh_plugin.so in {fakes.folder}"
    assert "make plugin" in str(missing.fix)
    _plugin(fakes)
    assert isinstance(probe_plugin(), LibraryFacts)


def test_one_of_another_version_is_refused(fakes: Fakes):
    found = probe_plugin(_plugin(fakes, "0.0.7"))
    assert isinstance(found, Failed)
    assert found.why.endswith(f"it belongs to moh-deploy 0.0.7, this is {__version__}")


def test_something_else_is_refused(fakes: Fakes):
    other = fakes.library("libother.so", "int other;")
    found = probe_plugin(other)
    assert isinstance(found, Failed)
    assert "it has no function moh_plugin_version" in found.why
    text = fakes.folder / "text.so"
    text.write_text("no library")
    assert "OSError: " in getattr(probe_plugin(text), "why", "")


def test_one_that_crashes_when_it_is_loaded_is_a_finding(fakes: Fakes):
    crash = "\n#include <stdlib.h>\n__attribute__((constructor)) void load() { abort(); }"
    found = probe_plugin(_plugin(fakes, more=crash))
    assert isinstance(found, Failed)
    assert "SIGABRT" in found.why


def test_the_library_for_onnx_runtime_is_registered(fakes: Fakes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "FOLDER", fakes.folder)
    code = _RETURNS.format(name="ort_cuda", version=__version__)
    fakes.library("libmoh_ort_cuda.so", code)
    refused = probe_ort_cuda()
    assert isinstance(refused, Failed)
    assert "RegisterCustomOps" in refused.why
    accepting = code + "\nvoid* RegisterCustomOps(void* options, void* api) { return 0; }"
    fakes.library("libmoh_ort_cuda.so", accepting)
    assert isinstance(probe_ort_cuda(), LibraryFacts)
