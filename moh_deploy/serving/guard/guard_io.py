"""Read and write the guard's files: audit log, marks of runs, control file, faults, metrics."""

import fcntl
import glob
import json
import mmap
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from moh_deploy.config.checked_yaml import checked
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.serving.guard import state_machine as machine
from moh_deploy.serving.guard.answer_check import is_float
from moh_deploy.serving.metrics import Family, FamilyKind, Series
from moh_deploy.system.bounded_file import read_bytes
from moh_deploy.system.bounded_json import parse_json, to_json_text
from moh_deploy.system.npz import Array
from moh_deploy.system.replaceable import FileKind
from moh_deploy.system.staging import staged_file

# Faults that a drill plants in the first fallback level of a running server.
#
# They exist only in a server that was started with `drill` allowed.

Fault = Literal["nan", "gates", "slow", "crash", "drift", "missing-library", "wrong"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

# Faults whose answers look right when they are given.
UNSEEN: frozenset[Fault] = frozenset(("wrong",))


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


# Know which levels were running when a process died: a kernel may take the process along.
#
# Each guard keeps a small file beside the audit log, with the number of runs under way on each
# level. It is shared memory, so it outlives the process. The process holds a lock on its file as
# long as it lives; the next process reads the files that are not locked.

_COUNT = np.dtype("<u4")


class RunningMarks:
    """The file of this process beside its audit log; without a log there is no file.

    Raises:
        ConfigError: Its folder cannot be written.
    """

    def __init__(self, log: Path | None, names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._counts = np.zeros(len(names), _COUNT)
        self._path: Path | None = None
        if log is None:
            return
        # The next process may have another chain, so the file has the names.
        head = "\n".join(names).encode() + b"\n\n"
        try:
            with ExitStack() as undo:
                self._file, path = tempfile.mkstemp(prefix=f"{log.name}.running-", dir=log.parent)
                undo.callback(os.close, self._file)
                undo.callback(os.unlink, path)
                # Locked while it is empty: others read only files with content.
                fcntl.flock(self._file, fcntl.LOCK_EX)
                os.write(self._file, head + self._counts.tobytes())
                memory = mmap.mmap(self._file, 0)
                undo.pop_all()
        except OSError as error:
            raise ConfigError(
                f"the folder of the audit log {log} cannot be written: {error.strerror}."
            ) from None
        self._counts = np.frombuffer(memory, _COUNT, offset=len(head))
        self._path = Path(path)

    @contextmanager
    def during(self, level: int) -> Iterator[None]:
        """Count a run on a level for as long as the block lasts, however it ends."""
        with self._lock:
            self._counts[level] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[level] -= 1

    def close(self) -> None:
        """Remove the file: this process ends in order."""
        with self._lock:
            path, self._path = self._path, None
            if path is not None:
                self._counts = self._counts.copy()  # of runs that go on
                path.unlink(missing_ok=True)
                os.close(self._file)


def died_in(log: Path | None) -> tuple[str, ...]:
    """Return the levels that were running when processes died, and remove their files."""
    if log is None:
        return ()
    found: dict[str, None] = {}
    for path in sorted(log.parent.glob(f"{glob.escape(log.name)}.running-*")):
        # Another process may be reading it, and remove it.
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            head, _, counts = file.read().partition(b"\n\n")
            if counts:
                for index, name in enumerate(head.decode(errors="replace").split("\n")):
                    if any(counts[_COUNT.itemsize * index :][: _COUNT.itemsize]):
                        found[name] = None
                path.unlink(missing_ok=True)
    return tuple(found)


class AuditLog:
    """Appends transitions to a file, one JSON object a line; several processes may do so.

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

    def add(self, change: machine.Transition, now: float) -> None:
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
        """Close the log's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


# The control file of a guard: the manual switch, drift alarms, and the faults of a drill.
#
# A file works for any server, on whatever protocol; who may write it may switch. It is written
# whole and moved into place, as `write_control` does.

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
        self._path, self._names, self._faults = path, list(names), faults
        self._next_look = float("-inf")
        self._seen: bytes | str = b"{}"
        self._pin: str | None = None
        self._alarm = ""

    def events(self, now: float) -> Iterator[machine.Event]:
        """Read the file if it has changed, and yield what it asks for."""
        if now < self._next_look:
            return
        self._next_look = now + _EVERY_S
        try:
            control = self._changed()
        except ConfigError as error:
            yield machine.ControlRefused(error.message)
        else:
            if control is not None:
                yield from self._obey(control)
        # An alarm holds as long as the file has it, so it is repeated.
        if self._alarm:
            yield machine.Drifted({"alarm": self._alarm})

    def _obey(self, control: Control) -> Iterator[machine.Event]:
        if self._faults is not None:
            self._faults.planted = frozenset(control.faults)
        elif control.faults:
            yield machine.ControlRefused(
                "faults are named, and this server was not started for a drill."
            )
        drills_drift = self._faults is not None and "drift" in control.faults
        self._alarm = control.drift or ("planted by a drill" if drills_drift else "")
        if control.pin is not None and control.pin not in self._names:
            known = ", ".join(self._names)
            yield machine.ControlRefused(
                f"pin is '{control.pin}', which is no fallback level; expected one of {known}."
            )
        elif control.pin != self._pin:
            # A file that changes elsewhere leaves a switch alone that was set over HTTP.
            self._pin = control.pin
            level = None if control.pin is None else self._names.index(control.pin)
            yield machine.Pinned(level, {"by": "control file"})

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


# The counters of a guard, and the metrics that show them.

_FAMILIES = (
    ("moh_mode", ("rung",), "1 for the fallback level that serves."),
    ("moh_rung_open", ("rung",), "1 for a fallback level that is open, 0.5 for a half-open one."),
    ("moh_guard_transitions_total", ("from", "to", "reason"), "Changes of the level that serves."),
    ("moh_fallback_requests_total", ("reason", "rung"), "Requests that a lower level answered."),
    ("moh_refused_requests_total", ("reason",), "Requests that no level could answer rightly."),
    ("moh_guard_comparisons_total", ("kind", "outcome"), "Answers that were computed again."),
)
_REFUSALS = ("non-finite outputs", "non-finite gates", "kernel error", "no rung")
_OPENNESS = {"closed": 0.0, "half-open": 0.5, "open": 1.0}


class GuardMetrics:
    """The counters of a guard. Its caller holds a lock."""

    def __init__(self) -> None:
        self.fallbacks: Counter[tuple[str, ...]] = Counter()
        # Shown as 0 from the beginning: an alert sees growth, and would miss the first.
        self.refused: Counter[tuple[str, ...]] = Counter({(reason,): 0 for reason in _REFUSALS})
        self.compared: Counter[tuple[str, ...]] = Counter()
        self.last_reason = ""  # why another level serves than before
        self._transitions: Counter[tuple[str, ...]] = Counter()

    def changed(self, change: machine.Transition) -> None:
        """Count a transition of the guard."""
        if change.reason == "wrong known answer":
            self.compared["known answer", "other"] += 1
        if change.mode_from != change.mode_to:
            self._transitions[change.mode_from, change.mode_to, change.reason] += 1
            self.last_reason = change.reason

    def families(self, states: Mapping[str, machine.LevelState], mode: str) -> tuple[Family, ...]:
        """Return the metrics, with the state of each level and the level that serves."""
        counts: list[Mapping[tuple[str, ...], float]] = [
            {(name,): float(name == mode) for name in states},
            {(name,): _OPENNESS[state] for name, state in states.items()},
            *(self._transitions, self.fallbacks, self.refused, self.compared),
        ]
        families = []
        for (name, labels, text), values in zip(_FAMILIES, counts, strict=True):
            series = (Series(dict(zip(labels, key, strict=True)), n) for key, n in values.items())
            kind: FamilyKind = "counter" if name.endswith("_total") else "gauge"
            families.append(Family(name, text, kind, tuple(series)))
        return tuple(families)
