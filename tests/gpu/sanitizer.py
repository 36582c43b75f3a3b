"""Runs a part of the cases under compute-sanitizer, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys

from tests.gpu.build import ROOT

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# It makes kernels a hundred times slower.
EVERY = 23


def check() -> dict[str, str]:
    """Return each tool's verdict: `clean`, or the end of what it printed."""
    if shutil.which("compute-sanitizer") is None:
        return dict.fromkeys(TOOLS, "compute-sanitizer was not found: it comes with CUDA's toolkit")
    return {tool: _run(tool) for tool in TOOLS}


def _run(tool: str) -> str:
    command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=9"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.gpu", "--only-cases", f"--every={EVERY}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return "clean" if done.returncode == 0 else done.stdout[-2000:]
