"""Keep the counts of single requests for a while: `start | stop | dump`.

Sums are not enough to tell chance from change: how much requests differ from each other is needed,
too, since the tokens of one request are alike.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import ConfigError
from moh_deploy.serving.telemetry.routing import CountedLayer, CountLayout, Counts
from moh_deploy.system.bounded_file import open_archive
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.npz import Array, read_npz, write_npz
from moh_deploy.system.staging import staged_file

# What a window may hold in memory; it stops by itself when it is full.
MOST_BYTES = 256 * 2**20

_FORMAT = 1
_MEMBERS = ("rows", "requests", "seconds")


@dataclass(frozen=True)
class WindowAbout(Strict):
    """The header of a dump: which model, and which layers."""

    digest: str  # of the model.onnx that was served
    layers: tuple[CountedLayer, ...]  # which were counted
    is_cut: bool = False  # the window was full before it was stopped
    format_version: int = _FORMAT


@dataclass(frozen=True)
class RecordedWindow:
    """Counts request by request, in the order in which they were answered."""

    about: WindowAbout  # of which model
    rows: Counts  # [rows, columns of the layout]
    # How many requests each row is of: more than one where a batch could not be told apart.
    requests: NDArray[np.int64]
    seconds: NDArray[np.float64]  # when each was answered, in seconds since 1970

    @property
    def layout(self) -> CountLayout:
        return CountLayout(self.about.layers)

    def arrays(self) -> dict[str, Array]:
        """Return what a dump holds."""
        about = TypeAdapter(WindowAbout).dump_json(self.about).decode()
        return {
            "about": np.array(about),
            # Half the size; counts of a request are exact up to 2**24.
            "rows": self.rows.astype(np.float32),
            "requests": self.requests,
            "seconds": self.seconds,
        }

    def write(self, path: Path) -> None:
        """Write an npz file, which `read_window` reads.

        Raises:
            PackageError: It cannot be written.
        """
        with staged_file(path) as partial:
            write_npz(partial, self.arrays())


class WindowRecorder:
    """Keeps rows until it is full or stopped; threads that add to it hold a lock."""

    def __init__(self, layout: CountLayout, digest: str) -> None:
        self._layout, self._digest = layout, digest
        self._kept: list[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]] = []
        self._bytes = 0
        self._is_open, self._is_cut = True, False

    def add(self, counts: Counts, requests: int) -> None:
        """Keep the rows of a run of so many requests."""
        rows = counts.astype(np.float32)
        if self._is_open and self._bytes + rows.nbytes > MOST_BYTES:
            self._is_open, self._is_cut = False, True
        if self._is_open:
            self._bytes += rows.nbytes
            each = np.full(len(rows), requests // len(rows))
            self._kept.append((rows, each, np.full(len(rows), time.time())))

    def stop(self) -> None:
        """Keep no more."""
        self._is_open = False

    def recorded(self) -> RecordedWindow:
        """Return what was kept so far; of a full window that takes a while."""
        kept = self._kept.copy()  # others may add to it meanwhile
        empty = np.zeros((0, self._layout.width), np.float32)
        return RecordedWindow(
            WindowAbout(self._digest, self._layout.layers, self._is_cut),
            np.concatenate([empty, *(rows for rows, _, _ in kept)], dtype=np.float64),
            np.concatenate([np.zeros(0, np.int64), *(requests for _, requests, _ in kept)]),
            np.concatenate([np.zeros(0), *(seconds for _, _, seconds in kept)]),
        )


def is_window(path: Path) -> bool:
    """Tell whether a file is a dump, by what it holds."""
    try:
        with open_archive(path, error=ConfigError, what="a dump") as archive:
            return {"about.npy", "rows.npy"} <= set(archive.namelist())
    except ConfigError:  # its reader says what is wrong with it
        return False


def read_window(path: Path) -> RecordedWindow:
    """Read a dump.

    Raises:
        ConfigError: It is no dump, or contradicts itself.
    """
    arrays = read_npz(path, error=ConfigError)
    missing = [name for name in ("about", *_MEMBERS) if name not in arrays]
    if missing:
        raise ConfigError(
            f"{path} is no dump of a window: it has no member '{missing[0]}'.",
            hint="`dump` of a served model's telemetry writes such files.",
        )
    text = arrays["about"]
    if text.dtype.kind != "U" or text.ndim:
        raise ConfigError(f"{path}: 'about' is {text.dtype}{list(text.shape)}, expected a text.")
    source = f"{path}: 'about'"
    content = parse_json(str(text), source, error=ConfigError)
    about = decode_strict(WindowAbout, content, source, error=ConfigError)
    if about.format_version != _FORMAT:
        raise ConfigError(
            f"{path} is of format version {about.format_version}, expected {_FORMAT}."
        )
    numbers, count = [arrays[name] for name in _MEMBERS], arrays["requests"].size
    forms = [(array.dtype.kind, array.shape) for array in numbers]
    width = CountLayout(about.layers).width
    expected = [("f", (count, width)), ("i", (count,)), ("f", (count,))]
    if forms != expected:
        raise ConfigError(f"{path} contradicts itself: it holds {forms}, expected {expected}.")
    rows, requests, seconds = (array.astype(np.float64) for array in numbers)
    # A time in seconds reaches the upper limit in the year 5138.
    if not all(((array >= 0) & (array <= 1e11)).all() for array in (rows, requests, seconds)):
        raise ConfigError(f"{path} holds counts or times that are no numbers, negative or huge.")
    if (requests < 1).any():
        raise ConfigError(f"{path} holds a row of no request.")
    return RecordedWindow(about, rows, requests.astype(np.int64), seconds)
