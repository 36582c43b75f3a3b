"""Record the original model at the example's sizes and at others, as far as the trace takes them.

Torch traces for sizes from 2 on, and builds that into what it makes of a size: the rows of an image
are its height over that of a patch, and must not be 1 in the traced program, though the model takes
an image of one patch. Such a size is no failure; it is below what the trace is good for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from moh_deploy.errors import ExportError
from moh_deploy.frontend.inputs.padding import SIDES, is_padded
from moh_deploy.frontend.inputs.sizes import Run, changed_runs, other_runs, run_at, run_padded
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.prove.original import OriginalRun, run_original
from moh_deploy.frontend.prove.record import Recording
from moh_deploy.frontend.prove.recorded_run import DoesNotRun

Take = Callable[[OriginalRun], Recording | DoesNotRun]
"""Runs the traced program at the sizes of a run of the original."""


@dataclass(frozen=True)
class SizeRuns:
    """Runs of the original at the sizes that the trace takes; the first is the example.

    Attributes:
        too_small: Dimensions that the model takes at size 1 and the trace does not.
        empty: Whether dimensions that may be empty, as a cache may, were recorded at size 0.
    """

    runs: list[OriginalRun]
    recordings: list[Recording]
    too_small: frozenset[str]
    empty: dict[str, bool]


def record_sizes(
    model: LoadedModel,
    inputs: Sequence[ModelInput],
    example: OriginalRun,
    take: Take,
    *,
    thorough: bool,
    may_be_empty: Collection[str] = (),
) -> SizeRuns:
    """Run the original model and the traced program at the example's sizes and at others.

    Args:
        thorough: As in `other_runs`.
        may_be_empty: Dimensions to try at size 0.

    Raises:
        ExportError: The traced program does not run at a size above 1 where the original does.
    """

    run = partial(run_original, model)
    recorder = _Recorder(inputs, run, take)
    recorder.add(example)
    for resized, outputs in other_runs(inputs, run, thorough=thorough):
        one = OriginalRun(resized, outputs)
        taken = take(one)
        if isinstance(taken, DoesNotRun) and 1 in one.sizes.values():
            too_small = _too_small(recorder, one)
            if not thorough or len(recorder.runs) == 1:
                for changed in changed_runs(inputs, run, example.sizes):
                    recorder.add(OriginalRun(*changed))
            break
        recorder.append(one, taken)
    else:
        too_small = frozenset()
    recorder.add_padding()
    tried = {name: recorder.add_empty(name) for name in may_be_empty if name not in too_small}
    empty = {name: found for name, found in tried.items() if found is not None}
    return SizeRuns(recorder.runs, recorder.recordings, too_small, empty)


@dataclass(frozen=True)
class _Recorder:
    """Runs the original model, and collects what the traced program makes of the same inputs."""

    inputs: Sequence[ModelInput]
    run: Run
    take: Take
    runs: list[OriginalRun] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)

    def add(self, run: OriginalRun) -> None:
        """Record a run that the traced program has to take."""
        self.append(run, self.take(run))

    def append(self, run: OriginalRun, taken: Recording | DoesNotRun) -> None:
        """Collect a run, or fail where the traced program did not take it."""
        if isinstance(taken, DoesNotRun):
            raise ExportError(
                f"the traced program does not run where the original model does{run.at}:"
                f" {taken.why}.",
                hint="The model fixes a size while it is traced, although the dimension is"
                " dynamic.",
            )
        self.runs.append(run)
        self.recordings.append(taken)

    def add_empty(self, name: str) -> bool | None:
        """Record a run at size 0 of a dimension, if both take it and agree; None if nothing is
        computed at that size, or no numbers, as behind a mask that leaves nothing.
        """
        made = run_at(self.inputs, self.run, {**self.runs[0].sizes, name: 0})
        if isinstance(made, Exception):
            return False
        one = OriginalRun(*made)
        try:
            taken = self.take(one)
        except ExportError:  # the trace computes something else at that size
            return False
        if isinstance(taken, DoesNotRun):
            return False
        tensors = [*one.outputs, *(layer.gates for layer in taken.layers)]
        if not all(tensor.numel() and tensor.isfinite().all() for tensor in tensors):
            return None
        self.append(one, taken)
        return True

    def add_padding(self) -> None:
        """Record the example with padding on a side, where no run has any there and it is known
        which tokens are valid."""
        for side in SIDES:
            masks = [item.value for run in self.runs for item in run.inputs if item.says_valid]
            if not masks or any(is_padded(mask, side) for mask in masks):
                continue
            made = run_padded(self.inputs, self.run, side)
            taken = None if made is None else self.take(OriginalRun(*made))
            if made is not None and isinstance(taken, Recording):
                self.append(OriginalRun(*made), taken)

    def taken_at(self, sizes: Mapping[str, int]) -> tuple[OriginalRun, Recording] | None:
        """Return both runs at given sizes; None where either does not take them."""
        made = run_at(self.inputs, self.run, sizes)
        if isinstance(made, Exception):
            return None
        one = OriginalRun(*made)
        taken = self.take(one)
        return None if isinstance(taken, DoesNotRun) else (one, taken)


def _too_small(recorder: _Recorder, refused: OriginalRun) -> frozenset[str]:
    """The dimensions that the trace does not take at size 1; records size 1 of the others.

    Args:
        refused: A run at size 1 that the trace did not take.
    """
    example = recorder.runs[0].sizes
    ones = [name for name, size in refused.sizes.items() if size == 1]
    too_small = [name for name in ones if recorder.taken_at({**example, name: 1}) is None]
    rest = {name: 1 for name in ones if too_small and name not in too_small}
    smallest = recorder.taken_at({**example, **rest}) if rest else None
    if smallest is None:
        return frozenset(ones)  # not together, though perhaps each alone
    recorder.append(*smallest)
    return frozenset(too_small)
