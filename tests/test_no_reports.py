"""ONNX Runtime reports to its maker unless it is told not to; who uses moh-deploy was not asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moh_deploy

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
