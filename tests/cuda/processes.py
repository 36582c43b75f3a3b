"""Cases in a process of their own: under a sanitizer, or on kernels that may be broken."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.libraries import ROOT, Variant


def environment_of(variant: Variant) -> dict[str, str]:
    """Return the environment of a process that loads a library of this variant."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | dict(variant.process_environment())


@dataclass(frozen=True)
class Verdict:
    """How a process ended.

    Attributes:
        passed: Every case was right, and no sanitizer found anything.
        output: The end of what it printed: what was wrong, first of all.
    """

    passed: bool
    output: str


def run_cases(library: Path, variant: Variant, *options: str, timeout_s: float = 1200) -> Verdict:
    """Run `tests.cuda.run_cases` on a library that was built as `variant`."""
    guards = ["--no-guards"] if "address" in variant.sanitize else []
    command = [sys.executable, "-m", "tests.cuda.run_cases", str(library), *guards, *options]
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment_of(variant),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        return Verdict(False, f"not done after {error.timeout:.0f} s")
    end = f"\nended by signal {-ran.returncode}" if ran.returncode < 0 else ""
    return Verdict(ran.returncode == 0, ran.stdout[-8000:] + end)
