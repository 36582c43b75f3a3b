"""The audit log of a guard: one JSON object a line, each written whole."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.ladder_state import Transition
from moh_deploy.system.json_text import to_json_text


class AuditLog:
    """Appends transitions to a file; several processes may append to one.

    Args:
        path: The file; None keeps no log.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        self._is_torn = False
        if path is None:
            return
        try:
            # A line in one write at the end of the file: those of two processes do not mix.
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"the audit log {path} cannot be written: {error.strerror}."
            ) from None

    def add(self, change: Transition, now: float) -> None:
        """Write a transition; to stderr where the file cannot be written: a disk that is full.

        Serving goes on: the way back to safe answers must not fail for want of a log.

        Args:
            change: What changed.
            now: Seconds since 1970.
        """
        if self._file is None:
            return
        time = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        found = asdict(change)
        entry = {
            "time": time.replace("+00:00", "Z"),
            "from": found.pop("mode_from"),
            "to": found.pop("mode_to"),
            "reason": found.pop("reason"),
            **found,
        }
        line = _line(entry)
        try:
            self._append(self._file, (line + "\n").encode())
        except OSError as error:
            print(
                f"warning: the audit log cannot be written: {error.strerror}; its line is {line}",
                file=sys.stderr,
                flush=True,
            )

    def _append(self, file: int, line: bytes) -> None:
        # A disk that becomes full takes a part, and says why at the next write only.
        rest = b"\n" + line if self._is_torn else line
        while rest:
            rest = rest[os.write(file, rest) :]
            self._is_torn = bool(rest)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _line(entry: dict[str, object]) -> str:
    return json.dumps(json.loads(to_json_text(entry)), separators=(", ", ": "))
