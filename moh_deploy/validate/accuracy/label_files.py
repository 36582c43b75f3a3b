"""Read labels from a user's file: npy, npz or csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import read_text
from moh_deploy.system.npz import Array, read_npy, read_npz

SUFFIXES = (".npy", ".npz", ".csv")

MOST_CSV_BYTES = 2**28

_NAMES = ("labels", "label")


def read_labels(path: Path) -> Array:
    """Read the labels of all samples, [N] or [N, ...].

    An npz holds one array, or one that is named `labels`. A csv has a sample a line: one number, or
    one for each token; or a header that names a column `labels`.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    readers = {".npy": _read_npy, ".npz": _read_member, ".csv": _read_csv}
    labels = readers[path.suffix.lower()](path)
    if not labels.shape or not labels.size:
        raise ConfigError(f"{path} holds no labels: its shape is {list(labels.shape)}.")
    return labels


def _read_npy(path: Path) -> Array:
    return read_npy(path, error=ConfigError)


def _read_member(path: Path) -> Array:
    members = read_npz(path, error=ConfigError)
    names = list(members) if len(members) == 1 else [name for name in _NAMES if name in members]
    if len(names) != 1:
        listed = ", ".join(f"'{name}'" for name in members) or "none"
        raise ConfigError(
            f"{path} has members {listed}; expected one array, or one that is named 'labels'."
        )
    return members[names[0]]


def _read_csv(path: Path) -> Array:
    try:
        text = read_text(path, most_bytes=MOST_CSV_BYTES, error=ConfigError)
        # Spreadsheets write a byte order mark in front, which would make the first number none.
        with io.StringIO(text.removeprefix("\ufeff"), newline="") as file:
            lines = [(i, row) for i, row in enumerate(csv.reader(file), 1) if any(row)]
    except FileNotFoundError as missing:
        raise ConfigError(f"{path} does not exist.") from missing
    except csv.Error as problem:
        raise ConfigError(f"{path} cannot be read as csv: {problem}.") from problem
    column = None
    # A first line of numbers is a sample, not a header.
    if lines and not all(map(_is_number, lines[0][1])):
        column = _column(path, lines.pop(0)[1])
    rows = [_numbers(path, i, row, column) for i, row in lines]
    for (i, _), row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ConfigError(
                f"{path}, line {i}: {len(row)} labels, the first line has {len(rows[0])}."
            )
    labels = np.array(rows)
    # One number a line is a class a sample, [N]; several are tokens, [N, S].
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _column(path: Path, header: list[str]) -> int | None:
    """Return the number of the column that holds labels, by a file's header."""
    names = [name.strip().lower() for name in header]
    found = [i for i, name in enumerate(names) if name in _NAMES]
    if len(names) == 1:
        return 0
    if len(found) != 1:
        raise ConfigError(
            f"{path}: the first line is '{','.join(header)}', which names no column 'labels'.",
            hint="Name one so, or leave nothing but numbers in the file.",
        )
    return found[0]


def _numbers(path: Path, line: int, row: list[str], column: int | None) -> list[int | float]:
    if column is not None and column >= len(row):
        raise ConfigError(f"{path}, line {line}: there is no column {column + 1}.")
    cells = row if column is None else [row[column]]
    for cell in cells:
        if not _is_number(cell):
            raise ConfigError(f"{path}, line {line}: '{cell[:60]}' is no number.")
    return [_number(cell) for cell in cells]


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> int | float:
    try:
        # Integers first: as floats, those beyond 2**53 would become other labels.
        whole = int(text)
    except ValueError:
        return float(text)
    if whole.bit_length() >= 64:
        raise ValueError(f"{text[:40]} is no label: it has more than 63 bits")
    return whole
