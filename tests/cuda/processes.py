"""Cases in a process of their own: under a sanitizer, or on kernels that may be broken."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.libraries import ROOT, Variant


@dataclass(frozen=True)
class Verdict:
    """How a process ended.

    Attributes:
        passed: Every case was right, and no sanitizer found anything.
        output: The end of what it printed: what was wrong, first of all.
    """

    passed: bool
    output: str


def run_cases(library: Path, variant: Variant, *options: str, timeout_s: float = 300) -> Verdict:
    """Run `tests.cuda.run_cases` on a library that was built as `variant`."""
    guards = ["--no-guards"] if "address" in variant.sanitize else []
    command = [sys.executable, "-m", "tests.cuda.run_cases", str(library), *guards, *options]
    environment = {"OMP_NUM_THREADS": "1", **variant.process_environment()}
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        return Verdict(False, f"not done after {error.timeout:.0f} s")
    return Verdict(ran.returncode == 0, ran.stdout[-8000:])
