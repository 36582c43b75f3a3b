"""Record the original model at the example's sizes and at others, as far as the trace takes them.

Torch traces for sizes from 2 on, and builds that into what it makes of a size: the rows of an image
are its height over that of a patch, and must not be 1 in the traced program, though the model takes
an image of one patch. Such a size is no failure; it is below what the trace is good for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from moh_deploy.frontend.model import LoadedModel, ModelInput
from moh_deploy.frontend.original import OriginalRun, run_original
from moh_deploy.frontend.record import Recording
from moh_deploy.frontend.recorded_run import DoesNotRun, does_not_run
from moh_deploy.frontend.sizes import changed_runs, other_runs, run_at

Take = Callable[[OriginalRun], Recording | DoesNotRun]
"""Runs the traced program at the sizes of a run of the original."""


@dataclass(frozen=True)
class SizeRuns:
    """Runs of the original at the sizes that the trace takes; the first is the example.

    Attributes:
        too_small: Dimensions that the model takes at size 1 and the trace does not.
    """

    runs: list[OriginalRun]
    recordings: list[Recording]
    too_small: frozenset[str]


def record_sizes(
    model: LoadedModel,
    inputs: Sequence[ModelInput],
    example: OriginalRun,
    take: Take,
    *,
    thorough: bool,
) -> SizeRuns:
    """Run the original model and the traced program at the example's sizes and at others.

    Args:
        thorough: As in `other_runs`.

    Raises:
        ExportError: The traced program does not run at a size above 1 where the original does.
    """

    def run(arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return run_original(model, arguments)

    found = SizeRuns([], [], frozenset())
    _append(found, example, take(example))
    for resized, outputs in other_runs(inputs, run, thorough=thorough):
        one = OriginalRun(resized, outputs)
        taken = take(one)
        if isinstance(taken, DoesNotRun) and 1 in one.sizes.values():
            return _without_size_one(found, one, inputs, run, take, thorough=thorough)
        _append(found, one, taken)
    return found


def _append(found: SizeRuns, run: OriginalRun, taken: Recording | DoesNotRun) -> None:
    if isinstance(taken, DoesNotRun):
        raise does_not_run(run, taken)
    found.runs.append(run)
    found.recordings.append(taken)


def _without_size_one(
    found: SizeRuns,
    refused: OriginalRun,
    inputs: Sequence[ModelInput],
    run: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    take: Take,
    *,
    thorough: bool,
) -> SizeRuns:
    """Leave out size 1 of the dimensions that the trace does not take at it."""
    example = found.runs[0].sizes

    def taken_at(sizes: Mapping[str, int]) -> tuple[OriginalRun, Recording] | None:
        made = run_at(inputs, run, sizes)
        if isinstance(made, Exception):
            return None
        one = OriginalRun(*made)
        taken = take(one)
        return None if isinstance(taken, DoesNotRun) else (one, taken)

    ones = [name for name, size in refused.sizes.items() if size == 1]
    too_small = [name for name in ones if taken_at({**example, name: 1}) is None]
    rest = {name: 1 for name in ones if too_small and name not in too_small}
    smallest = taken_at({**example, **rest}) if rest else None
    if smallest is None:
        too_small = ones  # not together, though perhaps each alone
    else:
        _append(found, *smallest)
    if not thorough or len(found.runs) == 1:
        for resized, outputs in changed_runs(inputs, run, example):
            one = OriginalRun(resized, outputs)
            _append(found, one, take(one))
    return SizeRuns(found.runs, found.recordings, frozenset(too_small))
