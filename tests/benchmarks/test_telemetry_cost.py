"""What telemetry adds to a run is counted."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge_case_package import write_edge_package
from tests.nightly import nightly

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "telemetry_cost.py"


@nightly
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_every_way_is_counted_and_reading_gates_takes_more(tmp_path: Path):
    package = write_edge_package(tmp_path / "package")
    command = [sys.executable, str(SCRIPT), str(package.root), "--runs", "2"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = {line[:16].strip(): float(line[16:].split()[0]) for line in shown.splitlines()[1:4]}
    assert list(counts) == ["bare", "not read", "read"]
    assert counts["read"] > counts["not read"] > 0
    assert "one run in 128 read: " in shown
