"""Runs stages of the GPU tests on a worker whose jobs go wrong, for tests of the stages."""

import stat
import sys
from pathlib import Path

from tests.gpu.isolated import Worker
from tests.gpu.report import Report
from tests.gpu.stage import Options, conclude, run_stage
from tests.gpu.steps import Step

__all__ = ["MACHINE", "STUB", "Step", "Worker", "conclude", "run_steps", "write_tool"]

STUB = (sys.executable, "-m", "tests.cuda.stub_worker")
MACHINE = Step("machine", "machine", timeout_s=20)


def run_steps(folder: Path, steps: list[Step], budget_s: float = 60.0) -> Report:
    library = folder / "library.so"
    library.touch()
    report = Report(folder / "out" / "stage.json", {"stage": "test"})
    run_stage(
        steps,
        report,
        Options(library, "cpu", folder / "cases.npz", folder / "out", STUB, budget_s),
    )
    return report


def write_tool(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
