"""Read the samples and labels of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package.token_mask import mask_input
from moh_deploy.runtime.base import ModelInterface
from moh_deploy.system.npz import Array, map_npz
from moh_deploy.validate.accuracy.choose import choose_metrics
from moh_deploy.validate.accuracy.class_labels import same_tokens
from moh_deploy.validate.accuracy.dataset import (
    Dataset,
    LabelledSamples,
    SampleAxis,
    sample_axis,
    samples_of,
)
from moh_deploy.validate.accuracy.label_files import SUFFIXES, read_labels
from moh_deploy.validate.accuracy.metrics import Metric
from moh_deploy.validate.accuracy.task import Task
from moh_deploy.validate.reference.samples import short_names
from moh_deploy.validate.reference.user_vectors import split_members


@dataclass(frozen=True)
class LabelledData:
    """The samples, labels and metrics of a task.

    Attributes:
        datasets: One for each file.
        metrics: What scores.
        axis: How the model counts samples.
    """

    datasets: tuple[Dataset, ...]
    metrics: tuple[Metric, ...]
    axis: SampleAxis


def read_labelled(paths: Sequence[Path], task: Task, model: ModelInterface) -> LabelledData:
    """Read inputs, expected outputs and labels, and choose the metrics.

    Args:
        paths: npz files of inputs.
        task: What was asked for.
        model: What inputs have to fit.

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
    axis = sample_axis([output for output in model.outputs if not named or output.name in named])
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
    sets = tuple(Dataset(*pair) for pair in zip(samples, given, strict=True))
    for dataset in sets:
        _check(dataset, named)
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
    axis: SampleAxis,
    mask: str | None,
) -> LabelledSamples:
    # A mask that is an input stays one, and is found there.
    if mask is not None:
        mask = mask_input(mask)
    is_input = mask in [info.name for info in model.inputs]
    others = {mask: members.pop(mask)} if mask in members and not is_input else {}
    try:
        found = split_members(members, model)
        by_order = found.by_order and f"{path}: {found.by_order}"
        held = LabelledSamples(path, found.inputs, found.expected, others, {}, name, by_order)
        return samples_of(held, model.inputs, axis)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error


def _check(dataset: Dataset, named: set[str]) -> None:
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
