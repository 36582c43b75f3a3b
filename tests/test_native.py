import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy import native
from tests.cli.run_cli import run_python


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    return tmp_path


def record(folder: Path, text: str) -> None:
    (folder / native.RECORD_NAME).write_text(text)


def test_library_is_found_where_the_installation_puts_it(folder: Path):
    assert native.kernel_library() is None
    (folder / native.LIBRARY_NAME).touch()
    assert native.kernel_library() == folder / native.LIBRARY_NAME


def test_reason_is_the_one_that_the_installation_recorded(folder: Path):
    record(folder, json.dumps({"reason": "cmake was not found"}))
    assert native.why_no_library() == (
        "moh-deploy was built without CPU kernels: cmake was not found"
    )
    (folder / native.LOG_NAME).touch()
    assert native.why_no_library().endswith("(log: moh_deploy/native/build.log)")


@pytest.mark.parametrize("text", [None, "", "{}", "[]"])
def test_without_a_record_nothing_was_installed(folder: Path, text: str | None):
    if text is not None:
        record(folder, text)
    assert native.why_no_library() == "moh-deploy runs from files that were not installed"


def test_library_that_was_taken_away_is_said_to_be_gone(folder: Path):
    record(folder, json.dumps({"reason": None}))
    assert "was built, but is no longer in moh_deploy/native" in native.why_no_library()


def test_finding_the_library_imports_nothing_heavy():
    code = "import sys, moh_deploy; moh_deploy.kernel_library(); print(*sys.modules)"
    imported = run_python("-c", code).out.split()
    assert not {"numpy", "onnx", "onnxruntime", "torch", "pydantic"} & set(imported)


# ONNX Runtime reports to its maker unless it is told not to; who uses moh-deploy was not asked.


_PROGRAM = "import moh_deploy, os, onnxruntime; print(os.environ.get('ORT_DISABLE_TELEMETRY'))"


@pytest.mark.parametrize("asked", [None, "0"])
def test_runtime_is_told_before_it_is_imported(asked: str | None, tmp_path: Path):
    # Little else: ONNX Runtime reports nothing where variables say that it runs in a CI.
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(moh_deploy.__file__).parent.parent),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    program = _PROGRAM
    if asked is not None:  # never really: it would send
        environment["ORT_DISABLE_TELEMETRY"] = asked
        program = program.replace(", onnxruntime", "")
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert list(tmp_path.rglob("*")) == []
    assert run.stdout.strip() == (asked or "1")
