"""Runs one program, and writes what it returns, or why it failed, to a file.

python -m moh_deploy.machine.programs NAME FILE ARGUMENT...
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from moh_deploy.errors import MoHDeployError


def main(name: str, file: str, *arguments: str) -> None:
    try:
        answer = import_module(f"moh_deploy.machine.programs.{name}").main(*arguments)
    except MoHDeployError as error:
        answer = {"failed": error.message, "fix": error.hint}
    except Exception as error:  # Whatever it was, it is the finding.
        answer = {"failed": f"{type(error).__name__}: {error}", "fix": None}
    Path(file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
