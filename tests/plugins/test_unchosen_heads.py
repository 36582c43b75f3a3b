"""Keys and values of a head that nobody chose are not even read."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.kernels import Kernels

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect as Linux has it")


def _run(kernels: Kernels, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-m", "tests.plugins.run_unreadable_heads"]
    return subprocess.run(
        [*script, str(kernels.library), kernels.instruction_set, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_keys_and_values_of_unchosen_heads_are_not_read(kernels: Kernels):
    ran = _run(kernels)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


def test_keys_and_values_of_chosen_heads_are_read(kernels: Kernels):
    """The twin: that memory really cannot be read."""
    assert _run(kernels, "all").returncode == -signal.SIGSEGV
