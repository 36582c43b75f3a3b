"""Keep the counts of single requests for a while: `start | stop | dump`.

Sums are not enough to tell chance from change: how much requests differ from each other is needed,
too, since the tokens of one request are alike.
"""

from __future__ import annotations

import json
import time
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from moh_deploy.config.strict_json import Strict
from moh_deploy.errors import ConfigError
from moh_deploy.serving.telemetry.layout import CountedLayer, CountLayout
from moh_deploy.serving.telemetry.routing import Counts, RequestCounts
from moh_deploy.system.bounded_json import parse_json
from moh_deploy.system.bounded_zip import open_archive
from moh_deploy.system.npz import Array, read_npz, write_npz
from moh_deploy.system.staging import staged_file

MOST_BYTES = 256 * 2**20
"""What a window may hold in memory; it stops by itself when it is full."""

_FORMAT = 1


@dataclass(frozen=True)
class WindowAbout(Strict):
    """The header of a dump: which model, and which layers.

    Attributes:
        digest: Of the model.onnx that was served.
        layers: Which were counted.
        is_cut: The window was full before it was stopped.
        format_version: Of the file.
    """

    digest: str
    layers: tuple[CountedLayer, ...]
    is_cut: bool = False
    format_version: int = _FORMAT


@dataclass(frozen=True)
class RecordedWindow:
    """Counts request by request, in the order in which they were answered.

    Attributes:
        about: Of which model.
        rows: [rows, columns of the layout].
        requests: How many requests each row is of: more than one where a batch could not be told
            apart.
        seconds: When each was answered, in seconds since 1970.
    """

    about: WindowAbout
    rows: Counts
    requests: NDArray[np.int64]
    seconds: NDArray[np.float64]

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
    """Keeps rows until it is full or stopped; whoever calls holds a lock, but for a copy's."""

    def __init__(self, layout: CountLayout, digest: str) -> None:
        self._layout, self._digest = layout, digest
        self._rows: list[NDArray[np.float32]] = []
        self._requests: list[NDArray[np.int64]] = []
        self._seconds: list[NDArray[np.float64]] = []
        self._bytes = 0
        self._is_open, self._is_cut = True, False

    def add(self, counted: RequestCounts) -> None:
        """Keep the rows of a run."""
        if not self._is_open:
            return
        rows = counted.rows.astype(np.float32)
        if self._bytes + rows.nbytes > MOST_BYTES:
            self._is_open, self._is_cut = False, True
            return
        self._bytes += rows.nbytes
        self._rows.append(rows)
        self._requests.append(counted.requests)
        self._seconds.append(np.full(len(rows), time.time()))

    def stop(self) -> None:
        self._is_open = False

    def copy(self) -> WindowRecorder:
        """Return one of what was kept so far, which nobody adds to."""
        found = copy(self)
        found._rows, found._requests = self._rows.copy(), self._requests.copy()
        found._seconds = self._seconds.copy()
        return found

    def recorded(self) -> RecordedWindow:
        """Return what was kept so far; of a full window that takes a while."""
        about = WindowAbout(self._digest, self._layout.layers, self._is_cut)
        empty = np.zeros((0, self._layout.width), np.float32)
        return RecordedWindow(
            about,
            np.concatenate([empty, *self._rows], dtype=np.float64),
            np.concatenate([np.zeros(0, np.int64), *self._requests]),
            np.concatenate([np.zeros(0), *self._seconds]),
        )


def is_window(path: Path) -> bool:
    """Tell whether a file is a dump, by what it holds."""
    try:
        with open_archive(path, error=ConfigError, what="a dump") as archive:
            return {"about.npy", "rows.npy"} <= set(archive.namelist())
    except ConfigError:  # whoever takes it for something else says what is wrong with it
        return False


def read_window(path: Path) -> RecordedWindow:
    """Read a dump.

    Raises:
        ConfigError: It is none, or contradicts itself.
    """
    arrays = read_npz(path, error=ConfigError)
    missing = [name for name in ("about", "rows", "requests", "seconds") if name not in arrays]
    if missing:
        raise ConfigError(
            f"{path} is no dump of a window: it has no member '{missing[0]}'.",
            hint="`dump` of a served model's telemetry writes such files.",
        )
    about = _read_about(path, arrays["about"])
    layout = CountLayout(about.layers)
    rows, requests, seconds = arrays["rows"], arrays["requests"], arrays["seconds"]
    shapes, count = (rows.shape, requests.shape, seconds.shape), requests.size
    expected = ((count, layout.width), (count,), (count,))
    if shapes != expected:
        raise ConfigError(f"{path} contradicts itself: shapes {shapes}, expected {expected}.")
    kinds = rows.dtype.kind + requests.dtype.kind + seconds.dtype.kind
    if kinds != "fif" or not all(map(_is_sensible, (rows, requests, seconds))):
        raise ConfigError(f"{path} holds counts or times that are no numbers, negative or huge.")
    if (requests.astype(np.int64) < 1).any():
        raise ConfigError(f"{path} holds a row of no request.")
    found = rows.astype(np.float64)
    return RecordedWindow(about, found, requests.astype(np.int64), seconds.astype(np.float64))


def _is_sensible(numbers: Array) -> bool:
    """Tell whether numbers are from 0 to 10**11, which a time in seconds reaches in 5138."""
    wide = numbers.astype(np.float64)
    return bool(((wide >= 0) & (wide <= 1e11)).all())


def _read_about(path: Path, text: Array) -> WindowAbout:
    if text.dtype.kind != "U" or text.ndim:
        raise ConfigError(f"{path}: 'about' is {text.dtype}{list(text.shape)}, expected a text.")
    content = parse_json(str(text), f"{path}: 'about'", error=ConfigError)
    try:
        about = TypeAdapter(WindowAbout).validate_json(json.dumps(content))
    except ValidationError as error:
        raise ConfigError(f"{path}: 'about' is of another form: {error}.") from error
    if about.format_version != _FORMAT:
        raise ConfigError(
            f"{path} is of format version {about.format_version}, expected {_FORMAT}."
        )
    return about
