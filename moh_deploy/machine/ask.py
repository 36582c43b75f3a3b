"""Call a probe in a process of its own: a native library that crashes there is an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from moh_deploy.system.isolate import isolated

Facts = TypeVar("Facts")

# The first import of PyTorch or TensorRT from a cold disk may take a minute or more.
_TIMEOUT_S = 180.0
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Failed:
    """The reason why a probe gave no facts."""

    why: str  # What happened, as half a sentence
    fix: str | None = None  # The next step, where it is known


def ask(
    function: Callable[..., Facts], *arguments: str, timeout_s: float = _TIMEOUT_S
) -> Facts | Failed:
    """Call a function that loads what may be missing or broken.

    Args:
        function: It imports nothing that may be missing before it is called.

    Raises:
        PackageError: There is no place for temporary files, or its disk is full.
    """
    # Errors of ours come back as half sentences here: a finding is put behind what it is of.
    found = isolated(function, *arguments, timeout_s=timeout_s)
    if found.error is not None:
        return Failed(found.error.message, found.error.hint)
    if found.exception is not None:  # Whatever it was, it is the finding.
        return Failed(found.exception)
    if found.return_code is None:
        return Failed(f"it did not answer within {timeout_s:.0f} s")
    # What has answered may still crash when it ends: then what it loaded is broken.
    if found.answer is None or found.return_code != 0:
        how = f"it crashed: the process ended with {found.how()}"
        telling = _telling(found.said.splitlines())[:_MOST_CHARACTERS]
        return Failed(f"{how}: {telling}" if telling else how)
    return found.answer


def _telling(lines: list[str]) -> str:
    """Return the last words of the library, and the innermost line of Python if it is known."""
    # faulthandler begins with "Fatal Python error"; what a library said stands before it, and the
    # innermost frame comes first after it.
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python")), len(lines))
    inner = next((line.strip() for line in lines[fatal:] if line.startswith("  File ")), "")
    said = lines[fatal - 1].strip() if fatal else ""
    return "; ".join(filter(None, [said, inner]))
