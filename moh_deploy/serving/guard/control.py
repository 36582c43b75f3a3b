"""The control file of a guard: the manual switch, drift alarms, and the faults of a drill.

A file works for any server, on whatever protocol; who may write it may switch. It is written whole
and moved into place, as `write_control` does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from moh_deploy.config.checked_yaml import checked
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.serving.guard.answer_check import is_float
from moh_deploy.serving.guard.state_machine import ControlRefused, Drifted, Event, Pinned
from moh_deploy.system.bounded_file import read_bytes
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import Array
from moh_deploy.system.replaceable import FileKind
from moh_deploy.system.staging import staged_file

# Faults that a drill plants in the first fallback level of a running server.
#
# They exist only in a server that was started with `drill` allowed.

Fault = Literal["nan", "gates", "slow", "crash", "drift", "missing-library", "wrong"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

UNSEEN: frozenset[Fault] = frozenset(("wrong",))
"""Faults whose answers look right when they are given."""


@dataclass
class Faults:
    """The faults that are planted now, and the names of the tensors that they change."""

    outputs: Sequence[str]
    gates: Sequence[str]
    slow_s: float = 0.25  # how much longer a slow run takes
    planted: frozenset[Fault] = frozenset()


@dataclass
class FaultyRunner(RunnerAround):
    """A runner with planted faults."""

    runner: Runner
    faults: Faults

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; see `Runner.run`."""
        return self.run_returning(inputs, self.outputs)

    def run_returning(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """Run the model once; see `Runner.run_returning`."""
        faults, planted = self.faults, self.faults.planted
        if "slow" in planted:
            time.sleep(faults.slow_s)
        if "crash" in planted:
            raise BackendError("a kernel failed, as a drill has planted it.")
        results = dict(self.runner.run_returning(inputs, outputs))
        for name, array in results.items() if planted else ():
            if not is_float(array):
                continue
            is_output = name in faults.outputs
            if "wrong" in planted and is_output:
                # Finite, and far outside of every tolerance.
                array = (array * np.asarray(1.05, array.dtype)).astype(array.dtype)
            if ("nan" in planted and is_output) or ("gates" in planted and name in faults.gates):
                array = np.array(array)
                if array.size:  # the last element of each sample
                    array.reshape(len(array) if array.ndim else 1, -1)[:, -1] = np.nan
            results[name] = array
        return results


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
