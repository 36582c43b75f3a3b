"""Cut samples into runs of a model, and runs into turns whose outputs fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo, VectorSet
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.validate.accuracy.dataset import Batch, Dataset, Fits, SampleAxis, choose_size
from moh_deploy.validate.accuracy.task import Task
from moh_deploy.validate.reference.input_sets import known_size
from moh_deploy.validate.reference.samples import Sample, label, valid_tokens_of
from moh_deploy.validate.reference.subject import Subject
from moh_deploy.validate.reference.user_vectors import check_ranges

_MOST_SAMPLES = 64
_RUN_BYTES = 2**27
"""Outputs of one run."""
_TURN_BYTES = 2**28
"""What one side returns in one turn: a reference is loaded once a turn."""


@dataclass(frozen=True)
class LabelledRun:
    """One run.

    Attributes:
        batch: Its samples and their labels.
        sample: The same as what two sides are compared on.
        held_bytes: What one side returns, gates included, about.
    """

    batch: Batch
    sample: Sample
    held_bytes: int


def labelled_runs(
    subject: Subject, data: Dataset, axis: SampleAxis, task: Task
) -> list[LabelledRun]:
    """Cut the samples of a file.

    Args:
        subject: What runs them.
        data: The samples.
        axis: How the model counts them.
        task: What was asked for.

    Raises:
        ConfigError: The model does not take them, or not so many at once.
    """
    try:
        sizes, fits = _sizes(subject, data, axis)
        each = _output_bytes(subject.package.manifest.outputs, sizes, axis)
        size = _batch_size(axis, fits, each, task.batch_size)
        # Gates are returned besides outputs, and may be larger than they are.
        held = size * (each + _gate_bytes(subject.package, data))
        batches = data.batches(size, fits)
        return [_run(subject, data, batch, held, task.valid_tokens) for batch in batches]
    except ConfigError as error:
        raise ConfigError(f"{data.samples.file}: {error.message}", hint=error.hint) from error


def turns(runs: Sequence[LabelledRun]) -> Iterator[list[LabelledRun]]:
    """Cut runs where their outputs reach a limit of memory."""
    turn: list[LabelledRun] = []
    held = 0
    for run in runs:
        if turn and held + run.held_bytes > _TURN_BYTES:
            yield turn
            turn, held = [], 0
        # A run that is larger than the limit by itself makes a turn of its own.
        turn.append(run)
        held += run.held_bytes
    yield turn


def _sizes(subject: Subject, data: Dataset, axis: SampleAxis) -> tuple[dict[str, int], Fits]:
    """Return the sizes of dynamic dimensions, and how many samples may run at once."""
    size, manifest = axis.size, subject.package.manifest
    if isinstance(size, int):
        # A model with a fixed batch runs no other, and has no sizes to choose.
        return {}, lambda count: count == size
    sizes = check_inputs(manifest.inputs, data.samples.inputs)

    def fits(count: int) -> bool:
        # Both limits: what the trace holds for, and what an engine was built for.
        asked = {**sizes, size: count}
        try:
            check_ranges(asked, manifest)
        except ConfigError:
            return False
        return subject.model.fits(asked)

    return sizes, fits


def _batch_size(axis: SampleAxis, fits: Fits, each: int, asked: int | None) -> int:
    if asked is not None:
        if asked < 1 or not fits(asked):
            raise ConfigError(f"the model does not run {asked} samples at once.")
        return asked
    if isinstance(axis.size, int):
        return axis.size
    return choose_size(min(_MOST_SAMPLES, max(1, _RUN_BYTES // max(1, each))), fits)


def _output_bytes(outputs: Sequence[TensorInfo], sizes: Mapping[str, int], axis: SampleAxis) -> int:
    """Return the bytes of all outputs for one sample; a size that is not known counts as 1."""
    of_one, total = {**sizes, str(axis.size): 1}, 0
    for output in outputs:
        known = (known_size(dim, of_one) for dim in output.shape[1:])
        itemsize = 2 if output.dtype == "bfloat16" else np.dtype(output.dtype).itemsize
        total += itemsize * math.prod(size for size in known if size is not None)
    return total


def _gate_bytes(package: OnnxPackage, data: Dataset) -> int:
    """Return the bytes of all gates for one sample: as recorded, for as much input."""
    if not package.vectors:
        return 0
    recorded = package.vectors[0]
    # Gates grow with tokens, as inputs do: the recorded ratio of both is scaled to these inputs.
    gates = sum(gate.nbytes for gate in recorded.gates)
    inputs, given = (
        sum(array.nbytes for array in arrays.values())
        for arrays in (recorded.inputs, data.samples.inputs)
    )
    return math.ceil(gates * given / max(1, inputs * len(data.labels)))


def _run(
    subject: Subject, data: Dataset, batch: Batch, held_bytes: int, tokens: str | None
) -> LabelledRun:
    manifest, file = subject.package.manifest, data.samples.file
    sizes = check_inputs(manifest.inputs, batch.inputs)
    vectors = VectorSet(sizes, batch.inputs, batch.expected, (), ())
    stop = batch.start + len(batch.labels)
    name = label(f"{data.samples.name}[{batch.start}:{stop}]", sizes)
    valid = valid_tokens_of(vectors, batch.others, str(file), manifest, tokens)
    sample = Sample(vectors, name, file, valid, data.samples.by_order)
    return LabelledRun(batch, sample, held_bytes)
