"""The control file of a guard: the manual switch, drift alarms, and the faults of a drill.

A file works for any server, on whatever protocol; who may write it may switch. It is written whole
and moved into place, as `write_control` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from moh_deploy.config.checked_yaml import checked
from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.faults import Fault, Faults
from moh_deploy.serving.guard.state_machine import ControlRefused, Drifted, Event, Pinned
from moh_deploy.system.bounded_file import read_bytes
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.replaceable import FileKind
from moh_deploy.system.staging import staged_file

_MOST_BYTES = 2**16
_EVERY_S = 0.1


class Control(BaseModel):
    """The contents of a control file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    pin: str | None = None  # the level that the manual switch holds
    drift: str = ""  # the alarm that holds
    faults: Annotated[tuple[Fault, ...], Field(strict=False)] = ()  # of a drill


CONTROL_FILE = FileKind.beginning_with("control file", rb'\s*\{\s*("pin"|"drift"|"faults"|\})')


def write_control(path: Path, control: Control) -> None:
    """Write a control file whole."""
    with staged_file(path) as partial:
        partial.write_text(control.model_dump_json())


class ControlFile:
    """Turns the content of a control file, which need not exist, into events of a guard.

    `faults` takes those of a drill; it is None where no drill is allowed.
    """

    def __init__(self, path: Path, names: Sequence[str], faults: Faults | None) -> None:
        self._path = path
        self._names = list(names)
        self._faults = faults
        self._next_look = float("-inf")
        self._seen: bytes | str = b"{}"
        self._pin: str | None = None
        self._alarm = ""

    def events(self, now: float) -> Iterator[Event]:
        """Read the file if it has changed, and yield what it asks for."""
        if now < self._next_look:
            return
        self._next_look = now + _EVERY_S
        try:
            control = self._changed()
        except ConfigError as error:
            yield ControlRefused(error.message)
        else:
            if control is not None:
                yield from self._obey(control)
        # An alarm holds as long as the file has it, so it is repeated.
        if self._alarm:
            yield Drifted({"alarm": self._alarm})

    def _obey(self, control: Control) -> Iterator[Event]:
        if self._faults is not None:
            self._faults.planted = frozenset(control.faults)
        elif control.faults:
            yield ControlRefused("faults are named, and this server was not started for a drill.")
        drills_drift = self._faults is not None and "drift" in control.faults
        self._alarm = control.drift or ("planted by a drill" if drills_drift else "")
        if control.pin is not None and control.pin not in self._names:
            known = ", ".join(self._names)
            yield ControlRefused(
                f"pin is '{control.pin}', which is no fallback level; expected one of {known}."
            )
        elif control.pin != self._pin:
            # A file that changes elsewhere leaves a switch alone that was set over HTTP.
            self._pin = control.pin
            level = None if control.pin is None else self._names.index(control.pin)
            yield Pinned(level, {"by": "control file"})

    def _changed(self) -> Control | None:
        """Return the content of the file, if it has changed.

        Raises:
            ConfigError: It cannot be read, or holds something else: raised once, until it changes.
        """
        found: bytes | str
        try:
            found = read_bytes(self._path, most_bytes=_MOST_BYTES, error=ConfigError)
        except FileNotFoundError:
            found = b"{}"
        except ConfigError as error:
            found = error.message
        if found == self._seen:
            return None
        self._seen = found
        if isinstance(found, str):
            raise ConfigError(found)
        content = parse_json(found, str(self._path), error=ConfigError)
        return checked(content, Control, str(self._path))
