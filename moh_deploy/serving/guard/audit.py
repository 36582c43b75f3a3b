"""The audit log of a guard: one JSON object a line, each written whole."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.state_machine import Transition
from moh_deploy.system.json_text import to_json_text


class AuditLog:
    """Appends transitions to a file; several processes may append to the same file.

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
        """Write a transition of `now`, in seconds since 1970; to stderr if the disk is full."""
        if self._file is None:
            return
        time = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        entry = {
            "time": time.replace("+00:00", "Z"),
            "from": change.mode_from,
            "to": change.mode_to,
            "reason": change.reason,
            "rung": change.rung,
            "state": change.state,
            "evidence": change.evidence,
        }
        line = json.dumps(json.loads(to_json_text(entry)))
        try:
            # A full disk takes a part of a line, and says why at the next write only.
            rest = ("\n" * self._is_torn + line + "\n").encode()
            while rest:
                rest = rest[os.write(self._file, rest) :]
                self._is_torn = bool(rest)
        except OSError as error:
            print(
                f"warning: the audit log cannot be written: {error.strerror}; its line is {line}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
