"""One run of the digits demo, with a shorter training, for all tests of what it leaves."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@dataclass(frozen=True)
class DemoRun:
    """The demo has ended.

    Attributes:
        process: How.
        work_dir: Where it left `digits.pt`, `package`, `held-out.npz` and `labels.npy`.
    """

    process: subprocess.CompletedProcess[str]
    work_dir: Path

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / "digits.pt"

    @property
    def package(self) -> Path:
        return self.work_dir / "package"


def run_demo(work_dir: Path, python: Path) -> DemoRun:
    """Train for three epochs, export, verify and compare, by this interpreter."""
    options = ["--work-dir", str(work_dir), "--epochs", "3", "--min-accuracy", "0.2"]
    command = [str(python), str(DIGITS / "demo.py"), *options]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return DemoRun(process, work_dir)
