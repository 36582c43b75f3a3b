"""Call the command line in this process, or in one of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.cli import main

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Outcome:
    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What stdout holds, which must be one JSON object and nothing else."""
        return json.loads(self.out)


@dataclass
class Cli:
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Outcome:
        self.capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *self.capture.readouterr())


def start_python(*arguments: str) -> subprocess.Popen[str]:
    """Start Python in the repository with both streams captured."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(*arguments: str) -> Outcome:
    """Run Python in the repository to its end."""
    process = start_python(*arguments)
    out, err = process.communicate(timeout=60)
    return Outcome(process.returncode, out, err)
