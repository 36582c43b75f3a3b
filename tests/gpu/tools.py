"""NVIDIA's tools over a part of the work: compute-sanitizer and Nsight Compute, where installed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.isolated import run_command
from tests.gpu.steps import Facts, Missing, Wrong

# Substring of the names of all our kernels, as the linker knows them, and of no other.
OUR_KERNELS = "moh"
_FOUND_SOMETHING = 9
_PROFILED_LAUNCH = 3  # the clocks are up by then


class TimedOut(Exception):
    """A tool was not done in time."""


@dataclass(frozen=True)
class Tools:
    """What the programs beneath the tools are called with.

    Attributes:
        device: Name of `tests.gpu.device.DEVICES`.
        out: Folder of what the tools write.
    """

    library: Path
    device: str
    cases: Path
    out: Path

    def run(self, job: str, timeout_s: float, arguments: dict[str, object]) -> Facts:
        """Run a step.

        Raises:
            Missing: The tool is not installed.
            Wrong: It has found something.
            TimedOut: It was not done in time.
        """
        return TOOLS[job](self, timeout_s, **arguments)

    def sanitize(self, timeout_s: float, *, tool: str, every: int) -> Facts:
        """Run contract cases under a tool of compute-sanitizer that looks at our kernels alone."""
        sanitizer = _installed("compute-sanitizer", "CUDA's toolkit")
        command = [
            sanitizer,
            f"--tool={tool}",
            f"--error-exitcode={_FOUND_SOMETHING}",
            *_only_our_kernels(sanitizer),
            *self._program("cases", "--every", str(every)),
        ]
        # Each tensor is an allocation: the tool knows where it ends, and what nobody has written.
        output = self._output(["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", *command], timeout_s)
        return {"summary": _last_line(output)}

    def profile(self, timeout_s: float, *, kernel: str, program: list[str]) -> Facts:
        """Let Nsight Compute collect all that it knows of one launch of a kernel."""
        ncu = _installed("ncu", "CUDA's toolkit, or Nsight Compute")
        path = self.out / f"ncu-{kernel}.csv"
        path.unlink(missing_ok=True)
        command = [
            ncu,
            f"--kernel-name=regex:(^|::){kernel}$",
            f"--launch-skip={_PROFILED_LAUNCH - 1}",
            "--launch-count=1",
            "--set=full",
            "--clock-control=none",
            "--csv",
            "--page=raw",
            f"--log-file={path}",
            *self._program(*program),
        ]
        self._output(command, timeout_s)
        if not path.is_file() or kernel not in path.read_text(errors="replace"):
            raise RuntimeError(f"ncu has not profiled '{kernel}': see {path.name}")
        return {"file": path.name}

    def _program(self, *arguments: str) -> list[str]:
        options = [f"--library={self.library}", f"--device={self.device}", f"--cases={self.cases}"]
        return [sys.executable, "-m", "tests.gpu.bare", *options, *arguments]

    def _output(self, command: Sequence[str], timeout_s: float) -> str:
        code, output = run_command(command, timeout_s)
        if code is None:
            raise TimedOut(f"not done after {timeout_s:g} s: killed\n{output}")
        if code in (1, _FOUND_SOMETHING):
            raise Wrong(f"exit status {code}", {"output": output})
        if code:
            raise RuntimeError(f"exit status {code}\n{output}")
        return output


TOOLS = {"sanitize": Tools.sanitize, "profile": Tools.profile}


def _installed(name: str, origin: str) -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which(name) or shutil.which(name, path=f"{home}/bin")
    if path is None:
        raise Missing(f"{name} was not found: it comes with {origin}")
    return path


def _only_our_kernels(sanitizer: str) -> list[str]:
    """Return the filter's option, whose name has changed between versions."""
    text = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False).stdout
    names = [name for name in ("--kernel-name", "--kernel-regex") if name in text]
    return [names[0], f"kns={OUR_KERNELS}"] if names else []


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else ""
