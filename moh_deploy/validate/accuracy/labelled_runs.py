"""Samples with labels in files, cut into runs of a model, and into turns that fit into memory."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo, VectorSet
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.task import Task
from moh_deploy.validate.reference.input_sets import known_size
from moh_deploy.validate.reference.reference import Subject
from moh_deploy.validate.reference.samples import Sample, check_ranges, label, valid_tokens_of

_Arrays = dict[str, Array]

Fits = Callable[[int], bool]
"""Whether the model runs so many samples at once."""

_MOST = 4097
_MOST_SAMPLES = 64
_RUN_BYTES = 2**27
"""Outputs of one run."""
_TURN_BYTES = 2**28
"""What one side returns in one turn: a reference is loaded once a turn."""


@dataclass(frozen=True)
class Batch:
    """Samples that the model runs at once."""

    inputs: _Arrays  # Name to array, for every input of the model
    expected: _Arrays  # Name to array, for the outputs whose values the file holds
    labels: Array  # [B, ...]
    others: _Arrays  # What else the file holds of these samples
    start: int  # Number of the first sample in its file
    # How many copies of the last sample stand behind it in inputs and expected outputs, because the
    # model does not run fewer.
    added: int

    def real(self, outputs: Mapping[str, Array]) -> _Arrays:
        """Return outputs without those of the copies; what does not count samples stays whole."""
        count = len(self.labels)
        whole = (count + self.added,)
        return {
            k: output[:count] if output.shape[:1] == whole else output
            for k, output in outputs.items()
        }


@dataclass(frozen=True)
class LabelledSamples:
    """The arrays of a file, and the axis along which each has samples."""

    file: Path
    inputs: _Arrays
    expected: _Arrays
    others: _Arrays  # What it holds besides inputs and expected outputs: a mask of tokens
    axes: Mapping[str, int]  # The axis of samples of each array that has one
    name: str  # What reports call the file
    by_order: str = ""  # As in `UserVectors`

    def __len__(self) -> int:
        # All arrays with an axis of samples have equally many, which `samples_of` has checked.
        name, axis = next(iter(self.axes.items()))
        return int({**self.inputs, **self.expected}[name].shape[axis])

    def taken(self, start: int, stop: int, added: int, arrays: Mapping[str, Array]) -> _Arrays:
        """Cut a range of samples out of arrays, and repeat the last one `added` times."""
        found = dict(arrays)
        for name in arrays.keys() & self.axes.keys():
            axis = self.axes[name]
            # [..., samples, ...]: everything in front of the axis of samples is kept.
            whole = (slice(None),) * axis
            some = arrays[name][*whole, start:stop]
            if added:
                last = np.repeat(some[*whole, -1:], added, axis)
                some = np.concatenate([some, last], axis)
            found[name] = some
        return found


@dataclass(frozen=True)
class Dataset:
    """Samples, N of them, and the label of each, [N, ...]."""

    samples: LabelledSamples
    labels: Array

    @property
    def file(self) -> Path:
        return self.samples.file

    @property
    def expected(self) -> Mapping[str, Array]:
        return self.samples.expected

    def batches(self, size: int, fits: Fits) -> Iterator[Batch]:
        """Cut into batches of a size; the last is filled up where the rest alone does not run."""
        for start in range(0, len(self.labels), size):
            stop = min(start + size, len(self.labels))
            # A copy of a real sample: made-up inputs might be NaN or out of a vocabulary.
            added = 0 if fits(stop - start) else size - (stop - start)
            held, cut = self.samples, partial(self.samples.taken, start, stop, added)
            labels, others = self.labels[start:stop], cut(held.others)
            yield Batch(cut(held.inputs), cut(held.expected), labels, others, start, added)


@dataclass(frozen=True)
class SampleAxis:
    """The size by which a model counts samples: the first axis of its outputs."""

    size: int | str  # A name, or a number if the model takes just so many at once

    def of(self, info: TensorInfo) -> int | None:
        """Return the axis of samples of an input, if any."""
        if isinstance(self.size, int):
            # A fixed size may turn up on other axes by chance, so only the first one counts.
            return 0 if info.shape[:1] == (self.size,) else None
        return next((axis for axis, size in enumerate(info.shape) if size == self.size), None)


def sample_axis(outputs: Sequence[TensorInfo]) -> SampleAxis:
    """Find the axis by which a model counts samples.

    Raises:
        ConfigError: They have no axis in common that could be it.
    """
    sizes = {output.shape[0] if output.shape else None for output in outputs}
    size = sizes.pop() if len(sizes) == 1 else None
    # An expression, `batch*views` say, does not count samples one by one.
    if size is None or (isinstance(size, str) and not size.isidentifier()):
        shapes = ", ".join(
            f"'{output.name}' [{', '.join(map(str, output.shape))}]" for output in outputs
        )
        raise ConfigError(
            f"which axis counts samples cannot be told from outputs {shapes}; expected it first,"
            " alike for all.",
            hint="Name the output that is scored: --label-output NAME.",
        )
    return SampleAxis(size)


def samples_of(
    held: LabelledSamples, infos: Sequence[TensorInfo], axis: SampleAxis
) -> LabelledSamples:
    """Find the samples in what a file holds.

    Args:
        held: The same without axes.

    Raises:
        ConfigError: Arrays have not equally many, or one has no axis of them.
    """
    places = {info.name: axis.of(info) for info in infos if info.name in held.inputs}
    axes = {name: place for name, place in places.items() if place is not None}
    if not axes:
        raise ConfigError(f"no input of the model has an axis '{axis.size}', so none has samples.")
    # Outputs and masks have samples first, whatever the inputs have.
    axes |= dict.fromkeys((*held.expected, *held.others), 0)
    counts = {}
    for name, array in {**held.inputs, **held.expected, **held.others}.items():
        if name in axes and axes[name] >= array.ndim:
            raise ConfigError(
                f"'{name}' is {list(array.shape)}, expected samples on axis {axes[name]}.",
                hint="Leave out what is one number for all samples.",
            )
        if name in axes:
            counts[name] = array.shape[axes[name]]
    first, count = next(iter(counts.items()))
    for name, other in counts.items():
        if other != count:
            raise ConfigError(f"'{first}' has {count} samples, and '{name}' {other}.")
    if not count:
        raise ConfigError(f"'{first}' has no samples: there is nothing to score.")
    return replace(held, axes=axes)


@dataclass(frozen=True)
class LabelledRun:
    """One run: its samples with their labels, and the same as two sides are compared on it."""

    batch: Batch
    sample: Sample
    held_bytes: int  # What one side returns, gates included, about


def labelled_runs(
    subject: Subject, data: Dataset, axis: SampleAxis, task: Task
) -> list[LabelledRun]:
    """Cut the samples of a file.

    Raises:
        ConfigError: The model does not take them, or not so many at once.
    """
    try:
        sizes, fits = _sizes(subject, data, axis)
        each = _output_bytes(subject.package.manifest.outputs, sizes, axis)
        size = axis.size if isinstance(axis.size, int) else task.batch_size
        if task.batch_size is not None and (task.batch_size < 1 or not fits(task.batch_size)):
            raise ConfigError(f"the model does not run {task.batch_size} samples at once.")
        if size is None:
            size = choose_size(min(_MOST_SAMPLES, max(1, _RUN_BYTES // max(1, each))), fits)
        # Gates are returned besides outputs, and may be larger than they are.
        held = size * (each + _gate_bytes(subject.package.vectors, data))
        return [
            LabelledRun(batch, _sample(subject, data, batch, task.valid_tokens), held)
            for batch in data.batches(size, fits)
        ]
    except ConfigError as error:
        raise ConfigError(f"{data.file}: {error.message}", hint=error.hint) from error


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


def choose_size(wanted: int, fits: Fits) -> int:
    """Return the largest batch up to `wanted` that the model runs, or the next larger one.

    Raises:
        ConfigError: It runs none.
    """
    # Smaller ones first: the wanted size is what memory allows.
    for size in chain(range(wanted, 0, -1), range(wanted + 1, _MOST)):
        if fits(size):
            return size
    raise ConfigError(f"the model runs at no number of samples from 1 to {_MOST - 1}.")


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


def _output_bytes(outputs: Sequence[TensorInfo], sizes: Mapping[str, int], axis: SampleAxis) -> int:
    """Return the bytes of all outputs for one sample; a size that is not known counts as 1."""
    of_one, total = {**sizes, str(axis.size): 1}, 0
    for output in outputs:
        known = (known_size(dim, of_one) for dim in output.shape[1:])
        itemsize = 2 if output.dtype == "bfloat16" else np.dtype(output.dtype).itemsize
        total += itemsize * math.prod(size for size in known if size is not None)
    return total


def _gate_bytes(vectors: Sequence[VectorSet], data: Dataset) -> int:
    """Return the bytes of all gates for one sample: as recorded, for as much input."""
    if not vectors:
        return 0
    # Gates grow with tokens, as inputs do: the recorded ratio of both is scaled to these inputs.
    gates = sum(gate.nbytes for gate in vectors[0].gates)
    inputs, given = (
        sum(array.nbytes for array in arrays.values())
        for arrays in (vectors[0].inputs, data.samples.inputs)
    )
    return math.ceil(gates * given / max(1, inputs * len(data.labels)))


def _sample(subject: Subject, data: Dataset, batch: Batch, tokens: str | None) -> Sample:
    manifest, file = subject.package.manifest, data.file
    sizes = check_inputs(manifest.inputs, batch.inputs)
    vectors = VectorSet(sizes, batch.inputs, batch.expected, (), ())
    stop = batch.start + len(batch.labels)
    name = label(f"{data.samples.name}[{batch.start}:{stop}]", sizes)
    valid = valid_tokens_of(vectors, batch.others, str(file), manifest, tokens)
    return Sample(vectors, name, file, valid, data.samples.by_order)
