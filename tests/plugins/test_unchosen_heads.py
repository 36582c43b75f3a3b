"""Keys and values of a head that nobody chose are not even read."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.kernels import Kernels

ROOT = Path(__file__).resolve().parents[2]
OPS = ("MoHAttention", "MoHAggregatedAttention")

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


@pytest.mark.parametrize("op", OPS)
def test_keys_and_values_of_unchosen_heads_are_not_read(kernels: Kernels, op: str):
    ran = _run(kernels, op)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


@pytest.mark.parametrize("op", OPS)
def test_keys_and_values_of_chosen_heads_are_read(kernels: Kernels, op: str):
    """The twin: that memory really cannot be read."""
    assert _run(kernels, op, "all").returncode == -signal.SIGSEGV
