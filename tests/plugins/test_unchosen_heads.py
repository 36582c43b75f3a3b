"""Keys and values of a head that nobody chose, or behind the filled ones, are not even read."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nightly import in_turn, one_in, sampled
from tests.plugins.kernels import INSTRUCTION_SETS, Kernels, kernels_of

ROOT = Path(__file__).resolve().parents[2]
OPS = ("MoHAttention", "MoHAggregatedAttention")

each_instruction_set = pytest.mark.parametrize(
    ("instruction_set", "op"), in_turn(INSTRUCTION_SETS, OPS)
)
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


@sampled(5)
@pytest.mark.usefixtures("warm_processes")
@each_instruction_set
def test_keys_and_values_of_unchosen_heads_are_not_read(instruction_set: str, op: str):
    ran = _run(kernels_of(instruction_set), op)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


@sampled(3)
@pytest.mark.usefixtures("warm_processes")
@each_instruction_set
def test_keys_and_values_of_chosen_heads_are_read(instruction_set: str, op: str):
    """The twin: that memory really cannot be read."""
    assert _run(kernels_of(instruction_set), op, "all").returncode == -signal.SIGSEGV


@sampled(3)
@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize("instruction_set", one_in(2, INSTRUCTION_SETS))
def test_keys_and_values_behind_the_filled_ones_are_not_read(instruction_set: str):
    ran = _run(kernels_of(instruction_set), "room")
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
    assert _run(kernels_of(instruction_set), "room", "all").returncode == -signal.SIGSEGV
