"""Ask a program in a process of its own: a native library that crashes there is an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from moh_deploy.system.child_process import child_environment, how_it_ended
from moh_deploy.system.staging import scratch_directory

Facts = TypeVar("Facts")

_TIMEOUT_S = 180.0
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Failed:
    """Why there are no facts.

    Attributes:
        why: What happened, as half a sentence.
        fix: The next step, where the program knows it.
    """

    why: str
    fix: str | None = None


def ask(
    make: Callable[..., Facts], program: str, *arguments: str, timeout_s: float = _TIMEOUT_S
) -> Facts | Failed:
    """Run one of `moh_deploy.machine.programs`.

    Args:
        make: Called with what the program answers, by keyword; lists arrive as tuples.
        program: Its name.
        arguments: Its arguments.
        timeout_s: How long it may take.

    Raises:
        PackageError: There is no place for temporary files, or its disk is full.
    """
    with scratch_directory("moh-deploy-answer") as scratch:
        file = scratch / "answer.json"
        command = [sys.executable, "-X", "faulthandler", "-m", "moh_deploy.machine.programs"]
        try:
            ran = subprocess.run(
                [*command, program, str(file), *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                env=child_environment(),
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Failed(f"it did not answer within {timeout_s:.0f} s")
        # A program that has answered may still crash when it ends: then what it loaded is broken.
        if ran.returncode != 0 or not file.is_file():
            return Failed(_died(ran.returncode, ran.stderr))
        answer = cast("dict[str, object]", json.loads(file.read_text(encoding="utf-8")))
    if "failed" in answer:
        return Failed(str(answer["failed"]), cast("str | None", answer["fix"]))
    return make(**{name: _frozen(value) for name, value in answer.items()})


def _died(return_code: int, stderr: str) -> str:
    said = _telling(stderr.strip().splitlines())
    text = f"it crashed: the process ended with {how_it_ended(return_code)}"
    return f"{text}: {said[:_MOST_CHARACTERS]}" if said else text


def _telling(lines: list[str]) -> str:
    """Return what the library said, and the innermost line of Python where faulthandler has it."""
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python")), len(lines))
    inner = next((line.strip() for line in lines[fatal:] if line.startswith("  File ")), "")
    said = lines[fatal - 1].strip() if fatal else ""
    return "; ".join(filter(None, [said, inner]))


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
