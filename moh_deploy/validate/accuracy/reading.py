"""Read the samples and labels of a task."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package.interface import mask_input
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.system.bounded_file import read_text
from moh_deploy.system.npz import Array, map_npz, read_npy, read_npz
from moh_deploy.validate.accuracy import labelled_runs
from moh_deploy.validate.accuracy.choose import choose_metrics
from moh_deploy.validate.accuracy.task import Metric, Task, same_tokens
from moh_deploy.validate.reference.samples import short_names, split_members

# Read labels from a user's file: npy, npz or csv.

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
    suffix = path.suffix.lower()
    if suffix == ".csv":
        labels = _read_csv(path)
    elif suffix == ".npy":
        labels = read_npy(path, error=ConfigError)
    else:
        members = read_npz(path, error=ConfigError)
        names = list(members) if len(members) == 1 else [name for name in _NAMES if name in members]
        if len(names) != 1:
            listed = ", ".join(f"'{name}'" for name in members) or "none"
            raise ConfigError(
                f"{path} has members {listed}; expected one array, or one that is named 'labels'."
            )
        labels = members[names[0]]
    if not labels.shape or not labels.size:
        raise ConfigError(f"{path} holds no labels: its shape is {list(labels.shape)}.")
    return labels


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
    if lines and None in map(_number, lines[0][1]):
        column = _column(path, lines.pop(0)[1])
    rows = []
    for i, row in lines:
        if column is not None and column >= len(row):
            raise ConfigError(f"{path}, line {i}: there is no column {column + 1}.")
        cells = row if column is None else [row[column]]
        numbers = [_number(cell) for cell in cells]
        if None in numbers:
            wrong = cells[numbers.index(None)]
            raise ConfigError(f"{path}, line {i}: '{wrong[:60]}' is no number.")
        rows.append(numbers)
        if len(numbers) != len(rows[0]):
            raise ConfigError(
                f"{path}, line {i}: {len(numbers)} labels, the first line has {len(rows[0])}."
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


def _number(text: str) -> int | float | None:
    """Return a number, whole ones as int; None for other texts and for more than 63 bits."""
    try:
        # Integers first: as floats, those beyond 2**53 would become other labels.
        whole = int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None
    return whole if whole.bit_length() < 64 else None


@dataclass(frozen=True)
class LabelledData:
    """The samples, labels and metrics of a task."""

    datasets: tuple[labelled_runs.Dataset, ...]
    metrics: tuple[Metric, ...]
    axis: labelled_runs.SampleAxis  # How the model counts samples


def read_labelled(paths: Sequence[Path], task: Task, model: ModelInterface) -> LabelledData:
    """Read inputs, expected outputs and labels, and choose the metrics.

    Raises:
        ConfigError: Something cannot be read, or does not fit.
    """
    if not paths:
        raise ConfigError("there are labels, and no inputs that they are of: name --inputs, too.")
    # Mapped, not read: a dataset may be larger than memory.
    members = [map_npz(path, error=ConfigError) for path in paths]
    given = _labels(task.labels, paths, members, model)
    if not all(array.ndim for array in given):
        raise ConfigError("labels are a number alone, expected one for each sample: [N].")
    # Labels are needed to choose a metric, and those of every file have to suit it.
    metrics, *_ = (choose_metrics(task, array, model.outputs) for array in given)  # checks them all
    # A metric that is given all outputs names none of them.
    named = {metric.output for metric in metrics if metric.output is not None}
    axis = labelled_runs.sample_axis(
        [output for output in model.outputs if not named or output.name in named]
    )
    held = zip(paths, short_names(paths), members, strict=True)
    samples = [_read_samples(*group, model, axis, task.valid_tokens) for group in held]
    # One array for all files is divided in the order of the files.
    if len(given) != len(samples):
        counts, labels = [len(sample) for sample in samples], given[0]
        if sum(counts) != len(labels):
            raise ConfigError(
                f"there are {len(labels)} labels, and {sum(counts)} samples in"
                f" {', '.join(map(str, paths))}."
            )
        given = np.split(labels, np.cumsum(counts)[:-1])
    sets = tuple(labelled_runs.Dataset(*pair) for pair in zip(samples, given, strict=True))
    for dataset in sets:
        _check_labels(dataset, named)
        # A function of the user's decides itself which position is scored with which label.
        if named:
            same_tokens(dataset.labels, dataset.samples.inputs, task.labelling)
    return LabelledData(sets, metrics, axis)


def _labels(
    source: Path | str | Array,
    paths: Sequence[Path],
    members: list[dict[str, Array]],
    model: ModelInterface,
) -> list[Array]:
    """Return labels of all files together, or, of a member, of each. Inputs stay inputs."""
    if isinstance(source, np.ndarray):
        return [source]
    # By its suffix: `labels` alone is a member of the files of inputs.
    if Path(source).suffix.lower() in SUFFIXES:
        return [read_labels(Path(source))]
    name = str(source)
    for path, found in zip(paths, members, strict=True):
        if name not in found:
            listed = ", ".join(f"'{name}'" for name in found)
            raise ConfigError(
                f"labels '{name}' are neither a file ({', '.join(SUFFIXES)}) nor a member of"
                f" {path}, which holds {listed}."
            )
    if name in [info.name for info in model.inputs]:
        return [found[name] for found in members]
    # Taken out, so that it does not count as an input by position.
    return [found.pop(name) for found in members]


def _read_samples(
    path: Path,
    name: str,
    members: dict[str, Array],
    model: ModelInterface,
    axis: labelled_runs.SampleAxis,
    mask: str | None,
) -> labelled_runs.LabelledSamples:
    try:
        # A mask that is an input stays one, and is found there.
        found = split_members(members, model, () if mask is None else (mask_input(mask),))
        by_order = found.by_order and f"{path}: {found.by_order}"
        held = labelled_runs.LabelledSamples(
            path, found.inputs, found.expected, found.others, {}, name, by_order
        )
        return labelled_runs.samples_of(held, model.inputs, axis)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def _check_labels(dataset: labelled_runs.Dataset, named: set[str]) -> None:
    path, expected = dataset.samples.file, dataset.samples.expected
    if len(dataset.labels) != len(dataset.samples):
        raise ConfigError(
            f"there are {len(dataset.labels)} labels, and {len(dataset.samples)} samples in {path}."
        )
    # Some expected outputs without the scored one: the reference would be half recorded.
    missing = named - expected.keys()
    if expected and missing:
        raise ConfigError(
            f"{path} holds expected outputs, and not '{min(missing)}', which is scored.",
            hint="Add it, or leave expected outputs out: then the reference is computed.",
        )
