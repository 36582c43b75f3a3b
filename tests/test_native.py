from __future__ import annotations

import json
from pathlib import Path

import pytest

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
