"""Cases of Triton's kernel in a process of their own, where Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

from tests.cuda.libraries import ROOT
from tests.cuda.processes import Verdict


def run_cases(library: Path, *options: str) -> Verdict:
    """Run `tests.cuda.triton.run_cases` on the emulated library."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.cuda.triton.run_cases", str(library), *options],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1200,
    )
    end = f"\nended by signal {-ran.returncode}" if ran.returncode < 0 else ""
    return Verdict(ran.returncode == 0, ran.stdout[-8000:] + end)
