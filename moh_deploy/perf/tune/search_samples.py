"""Read what a search judges candidates on, and what it times them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune.quality import JudgedRun
from moh_deploy.runtime.open_runner import opened_package
from moh_deploy.validate.accuracy.labelled_runs import labelled_runs
from moh_deploy.validate.accuracy.metrics import Metric
from moh_deploy.validate.accuracy.reading import read_labelled
from moh_deploy.validate.accuracy.tally import SampleFiles
from moh_deploy.validate.accuracy.task import Task
from moh_deploy.validate.reference.input_sets import InputSet, checked_weights, input_sets
from moh_deploy.validate.reference.samples import (
    named_mask,
    npz_files,
    read_samples,
    recorded_samples,
    with_valid_tokens,
)
from moh_deploy.validate.reference.subject import Subject


@dataclass(frozen=True)
class SearchSamples:
    """The inputs of a search: candidates are judged on some, and timed on others.

    Attributes:
        runs: What conditions are judged on.
        sets: What is timed.
        files: Where labelled samples are from.
        metrics: What scores them, as the task names them.
    """

    runs: tuple[JudgedRun, ...]
    sets: tuple[InputSet, ...]
    files: SampleFiles
    metrics: tuple[Metric, ...] = ()


def read_runs(
    package: OnnxPackage, paths: Sequence[Path], weights: Sequence[float]
) -> SearchSamples:
    """Read files of inputs, each one run; without any, the recorded runs, timed at the first.

    Raises:
        ConfigError: A file or a weight does not fit.
    """
    mask = named_mask(package.manifest, None)
    sets = input_sets(package, paths, weights)
    samples = read_samples(paths, package.manifest, mask)
    if not paths:
        samples = with_valid_tokens(recorded_samples(package.vectors), package.manifest, mask)
    files = SampleFiles((), ())
    return SearchSamples(tuple(map(JudgedRun, samples)), tuple(sets), files)


def read_labelled_runs(
    package: OnnxPackage, paths: Sequence[Path], weights: Sequence[float], task: Task
) -> SearchSamples:
    """Read samples and labels; what is timed is the first batch of each file.

    Raises:
        ConfigError: Something does not fit the model, or each other.
    """
    files = npz_files(paths)
    counts = checked_weights(files, weights)
    data = read_labelled(files, task, package.manifest)
    subject = Subject(opened_package(package), package, "auto")
    by_file = [labelled_runs(subject, dataset, data.axis, task) for dataset in data.datasets]
    sets = [
        # Real samples: how many heads are open decides what is fastest.
        InputSet(first.sample.label, first.sample.known.sizes, first.sample.known.inputs, weight)
        for (first, *_), weight in zip(by_file, counts, strict=True)
    ]
    runs = [JudgedRun(run.sample, run.batch) for runs in by_file for run in runs]
    names = tuple(dataset.samples.name for dataset in data.datasets)
    where = SampleFiles(names, tuple(len(dataset.labels) for dataset in data.datasets))
    return SearchSamples(tuple(runs), tuple(sets), where, data.metrics)
