"""The control file of a guard: the manual switch, alarms of drift, and the faults of a drill.

A file works for any server, on whatever protocol; who may write it may switch. It is written whole
and moved into place, as `write_control` does.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from moh_deploy.config.strict_json import Strict
from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.faults import Fault
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.replaceable import FileKind
from moh_deploy.system.staging import staged_file
from moh_deploy.system.suggest import did_you_mean, shortened


@dataclass(frozen=True)
class Control(Strict):
    """The contents of a control file.

    Attributes:
        pin: The rung that the manual switch holds; None: it is off.
        drift: What alarmed, as long as an alarm holds; empty: nothing.
        faults: What a drill plants; ignored by a server that was not started for one.
    """

    pin: str | None = None
    drift: str = ""
    faults: tuple[Fault, ...] = ()


_CONTROL = TypeAdapter(Control)

CONTROL_FILE = FileKind.beginning_with("control file", rb'\s*\{\s*("pin"|"drift"|"faults"|\})')


def write_control(path: Path, control: Control) -> None:
    """Write a control file whole."""
    with staged_file(path) as partial:
        partial.write_bytes(_CONTROL.dump_json(control))


class ControlFile:
    """Reads a control file when it has changed.

    Args:
        path: The file; it need not be there.
        every_s: It is looked at no more often than that.
    """

    def __init__(self, path: Path, every_s: float = 0.1) -> None:
        self._path = path
        self._every_s = every_s
        self._next = float("-inf")
        self._seen: tuple[int, int, int] | str | None = None

    def is_due(self, now: float) -> bool:
        """Tell whether it is time to look, for one caller only."""
        if now < self._next:
            return False
        self._next = now + self._every_s
        return True

    def changed(self) -> Control | None:
        """Return what it says, if that is new.

        Raises:
            ConfigError: It cannot be read, or holds something else: raised once, until it changes.
        """
        found = self._look()
        if found == self._seen:
            return None
        self._seen = found
        if found is None:
            return Control()
        if isinstance(found, str):
            raise ConfigError(f"{self._path}: cannot be looked at: {found}.")
        try:
            content = read_json(self._path, error=ConfigError)
            # As JSON text: only so does strict mode take lists for tuples.
            return _CONTROL.validate_json(json.dumps(content))
        except FileNotFoundError:
            return Control()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "it"
            if first["type"] == "unexpected_keyword_argument":
                known = [one.name for one in fields(Control)]
                hint = did_you_mean(place, known) or f"It may hold: {shortened(known)}."
                problem = f"{place} is not a known key. {hint}"
            else:
                problem = f"{place} is wrong: {first['msg']}."
            raise ConfigError(f"{self._path}: {problem}") from None

    def _look(self) -> tuple[int, int, int] | str | None:
        """Return what changes with the file, why that cannot be told, or None without a file."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.strerror or str(error)
        # When it was changed, not when it was written: permissions count, too.
        return (status.st_ino, status.st_ctime_ns, status.st_size)
