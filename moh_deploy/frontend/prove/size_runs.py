"""Record the original model at the example's sizes and at others, as far as the trace takes them.

Torch traces for sizes from 2 on, and builds that into what it makes of a size: the rows of an image
are its height over that of a patch, and may have to be 2 or more in the traced program, though the
model takes an image of one patch. Such a size is no failure; it is below what the trace is good
for.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from moh_deploy.errors import ExportError
from moh_deploy.frontend.inputs.padding import SIDES, is_padded, may_be_mask, without_padding
from moh_deploy.frontend.inputs.sizes import SizeTrials, first_line, run_padded, run_with_zeros
from moh_deploy.frontend.limits import Ranges
from moh_deploy.frontend.prove.original import DoesNotRun, OriginalRun
from moh_deploy.frontend.prove.record import Recording
from moh_deploy.package import DimSum

# A run of up to about a second on one core.
_QUICK_FLOPS = 50_000_000_000

Take = Callable[[OriginalRun], Recording | DoesNotRun]
"""Runs the traced program at the sizes of a run of the original."""


@dataclass(frozen=True)
class SizeRuns:
    """Runs of the original at the sizes that the trace takes; the first is the example."""

    runs: list[OriginalRun]
    recordings: list[Recording]
    # Smallest and largest size of the dimensions for which the trace is not good at all sizes from
    # 1 on.
    ranges: Ranges
    reasons: dict[str, str]  # why they are limited, by dimension


def record_sizes(
    trials: SizeTrials,
    example: OriginalRun,
    take: Take,
    *,
    flops: int | None,
    may_be_empty: Collection[str] = (),
    sums: Sequence[DimSum] = (),
    retraced: Callable[[str, int], Ranges | None] = lambda name, size: None,
) -> SizeRuns:
    """Run the original model and the traced program at the example's sizes and at others.

    Args:
        trials: Runs the original. Its ranges are those of the trace, which may be stricter than the
            model.
        flops: Of the example; None if that is not known. A model that takes long is run at fewer
            sizes.
        may_be_empty: Dimensions to try at size 0.
        sums: Dimensions that are limited together.
        retraced: As in `try_limits`.

    Raises:
        ExportError: The traced program does not run at a size above the smallest where the original
            does.
    """
    recorder = _Recorder(trials, take)
    recorder.append(example, take(example))
    thorough = _is_quick(flops)

    def in_the_way(name: str, size: int) -> str | None:
        # What is limited together with it is as small as it may be.
        others = {other for sum_ in sums if name in sum_.dims for other in sum_.dims} - {name}
        if size < example.sizes[name] or not others:
            return recorder.in_the_way(name, size, {}, flops)
        return recorder.in_the_way(name, size, dict.fromkeys(others, 0), flops) and (
            recorder.in_the_way(name, size, dict.fromkeys(others, 1), flops)
        )

    ranges, reasons = try_limits(trials.ranges, in_the_way, retraced)
    trials = replace(trials, ranges=ranges)
    for made in trials.others(thorough=thorough):
        run = OriginalRun(*made)
        taken = take(run)
        if isinstance(taken, DoesNotRun) and 1 in run.sizes.values():
            too_small = _too_small(recorder, run)
            reasons |= {
                name: f"the trace does not take {name}=1: {taken.why}" for name in too_small
            }
            ranges |= {name: (2, ranges.get(name, (1, None))[1]) for name in too_small}
            if not thorough or len(recorder.runs) == 1:
                for changed in trials.changed():
                    run = OriginalRun(*changed)
                    recorder.append(run, take(run))
            break
        recorder.append(run, taken)
    recorder.add_padding()
    for name in may_be_empty:
        smallest, largest = ranges.get(name, (1, None))
        takes_none = recorder.add_empty(name) if smallest == 1 else None
        if takes_none is False or (takes_none and largest is not None):
            ranges[name] = (0 if takes_none else 1, largest)
    return SizeRuns(recorder.runs, recorder.recordings, ranges, reasons)


def _is_quick(flops: int | None) -> bool:
    return flops is not None and flops <= _QUICK_FLOPS


@dataclass(frozen=True)
class _Recorder:
    """Runs the original model, and collects what the traced program makes of the same inputs."""

    trials: SizeTrials
    take: Take
    runs: list[OriginalRun] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)

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
        try:
            found = self.taken_at({**self.runs[0].sizes, name: 0})
        except ExportError:  # the trace computes something else at that size
            return False
        if found is None:
            return False
        run, taken = found
        tensors = [*run.outputs, *(layer.gates for layer in taken.layers)]
        if not all(tensor.numel() and tensor.isfinite().all() for tensor in tensors):
            return None
        self.append(run, taken)
        return True

    def in_the_way(
        self, name: str, size: int, beside: Mapping[str, int], flops: int | None
    ) -> str | None:
        """Run both at a size of a dimension; say what is in the way if they do not agree.

        Args:
            beside: Sizes of others, where those are not the example's.
            flops: Of the example.
        """
        example = self.runs[0].sizes
        # Attention grows with the square of its tokens.
        times = max(1, size // example[name]) ** 2
        if size > example[name] and not _is_quick(None if flops is None else flops * times):
            return f"{name}={size} would take long to try"
        made = self.trials.at({**example, **beside, name: size})
        if isinstance(made, Exception):
            return f"the original model does not take {name}={size}: {first_line(made)}"
        run = OriginalRun(*made)
        try:
            taken = self.take(run)
        except ExportError as error:
            return error.message.rstrip(".")
        if isinstance(taken, DoesNotRun):
            return f"the trace is not good at {name}={size}: {taken.why}"
        # Without elements, or behind a mask that leaves nothing, nothing was compared.
        if not all(output.isfinite().any() for output in run.outputs):
            return f"the original model computes no numbers at {name}={size}"
        layers = zip(taken.layers, self.recordings[0].layers, strict=True)
        return next(
            (layer_record.disagreement for layer_record, known in layers if not known.disagreement),
            None,
        )

    def add_padding(self) -> None:
        """Record the example with padding on a side, where no run has any there.

        Padding is in the mask that says which tokens are valid. Where it is not known which input
        does, it is in all that may be masks, and everything is compared.
        """
        inputs, run = self.trials.inputs, self.trials.run
        is_known = any(item.says_valid for item in inputs)
        for side in SIDES:
            items = [item for known in self.runs for item in known.inputs]
            masks = [item for item in items if (item.says_valid if is_known else may_be_mask(item))]
            if not masks or any(is_padded(mask, side) for mask in masks):
                continue
            made = (
                run_padded(without_padding(inputs), run, side)
                if is_known
                else run_with_zeros(inputs, run, side)
            )
            taken = None if made is None else self.take(OriginalRun(*made))
            if made is not None and isinstance(taken, Recording):
                self.append(OriginalRun(*made), taken)

    def taken_at(self, sizes: Mapping[str, int]) -> tuple[OriginalRun, Recording] | None:
        """Return both runs at given sizes; None where either does not take them."""
        made = self.trials.at(sizes)
        if isinstance(made, Exception):
            return None
        run = OriginalRun(*made)
        taken = self.take(run)
        return None if isinstance(taken, DoesNotRun) else (run, taken)


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


# Tell limits of a trace from those of the model, by trying sizes beyond them.
#
# Torch limits a size wherever it decides something by it: windows that must be two, an
# `if` whose branches compute the same. Where the original model and what was traced of it agree
# beyond a limit, that is not the model's.

Disagreement = Callable[[str, int], "str | None"]
"""Runs both at a size of a dimension, those of others as in the example. Says what is in the way;
None if they agree."""


def try_limits(
    ranges: Mapping[str, tuple[int, int | None]],
    disagreement: Disagreement,
    retraced: Callable[[str, int], Ranges | None],
) -> tuple[Ranges, dict[str, str]]:
    """Lift each limit as far as the original and the program agree beyond it.

    Args:
        ranges: What the trace says.
        retraced: Returns the ranges of another trace, whose example is of a given size; None
            without such a trace. A single run beyond an upper limit says little of all larger ones.

    Returns:
        Smallest and largest size of each dimension that stays limited, and what is in the way
        beyond a limit that stays, by dimension.
    """
    tried: Ranges = {}
    reasons: dict[str, str] = {}
    for name, (least, most) in ranges.items():
        smallest, why = _stretched(name, least, min(least, 1), disagreement)
        found = [] if why is None else [why]
        largest = most
        if most is not None:
            # Up to four times the limit; another trace says how far it reaches from there.
            largest, why = _stretched(name, most, 4 * most, disagreement)
            if why is None:
                beyond = retraced(name, largest)
                first, further = (None, None) if beyond is None else beyond.get(name, (1, None))
                # The size behind `most` was tried, and may be all that is between the two.
                if first is None or first > most + 2:
                    why = f"larger sizes than {name}={largest} were not tried"
                else:
                    largest = further
            found += [] if why is None else [why]
        if smallest > 1 or largest is not None:
            tried[name] = (smallest, largest)
        if found:
            reasons[name] = "; ".join(found)
    return tried, reasons


def _stretched(
    name: str, limit: int, end: int, disagreement: Disagreement
) -> tuple[int, str | None]:
    """Go from a limit towards `end` in steps that double, and from one that is too far again in
    small ones; return how far both agree, and what is in the way of more."""
    step, sign = 1, 1 if end > limit else -1
    while limit != end:
        size = limit + sign * min(step, abs(end - limit))
        why = disagreement(name, size)
        if why is None:
            limit, step = size, 2 * step
        elif step > 1:
            step = 1
        else:
            return limit, why
    return limit, None
