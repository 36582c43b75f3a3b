"""Run samples and tokens of a known run at other sizes, where they have to give what they gave.

The original's results at other sizes are unknown. But in nearly every model no sample of a
batch sees another, and in a causal one no token sees a later one. That is asked of the model first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Runner
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.edge_cases.input_run import InputJudge
from moh_deploy.validate.edge_cases.source import CaseResult, input_result
from moh_deploy.validate.reference.input_sets import batch_dim, picked, sized_inputs
from moh_deploy.validate.reference.reference import Variants
from moh_deploy.validate.reference.samples import check_ranges

SAMPLES, TOKENS = "samples by themselves", "tokens without later ones"

_BATCHES = (*range(1, 10), 16)
_TOKENS = 12
"""All lengths below are run, and some above, up to that of the recorded run."""

_ENOUGH = 4
"""Sizes that have to agree before one that does not is taken for wrong."""

Pick = tuple[int, ...]
"""Numbers of the samples, or of the tokens, that a run is given."""


_Value = TypeVar("_Value", Array, "Array | None")


class _NothingTellsError(Exception):
    """Raised where nothing tells what a run at another size has to give."""


class _Ran(NamedTuple):
    """A run of some samples or tokens, and its comparison with the known one."""

    pick: Pick
    inputs: Mapping[str, Array]
    report: ParityReport

    @property
    def agrees(self) -> bool:
        return not self.report.reasons


def run_samples(judge: InputJudge) -> CaseResult:
    """Run samples of the recorded run in batches of other sizes, and in another order."""
    try:
        return _run_samples(judge)
    except _NothingTellsError as why:
        return input_result(SAMPLES, "not applicable", str(why))


def _run_samples(judge: InputJudge) -> CaseResult:
    dim = batch_dim(judge.package.manifest)
    if dim is None:
        raise _NothingTellsError("no dimension counts samples.")
    known = judge.package.vectors[0]
    size = known.sizes[dim]
    picks = [_samples(size, batch) for batch in _BATCHES if batch != size]
    # The same size: another order, and one sample only, which others cannot but change.
    same = [tuple(range(size))[::-1], (0,) * size] if size > 1 else []
    ran = _run(judge, dim, known, [*same, *picks])
    # At the recorded size nothing but the company of a sample has changed, so a difference means
    # that samples see each other.
    mixed = [tried for tried in ran if len(tried.pick) == size and not tried.agrees]
    if mixed:
        why = mixed[0].report.reasons[0]
        raise _NothingTellsError(f"samples of one run are not independent: {why}")
    others = [tried for tried in ran if len(tried.pick) != size]
    agreeing = sum(other.agrees for other in others)
    # One sample cannot be put in other company; that most sizes agree has to do instead.
    if size == 1 and agreeing < max(2, len(others) - agreeing):
        raise _NothingTellsError(
            "one sample was recorded, so nothing tells whether samples are independent."
        )
    return _judged(judge, SAMPLES, dim, known, others)


def run_tokens(judge: InputJudge) -> Iterator[CaseResult]:
    """Run the first tokens of a longer run, for each dimension that does not count samples."""
    manifest = judge.package.manifest
    for dim in manifest.dims:
        if dim != batch_dim(manifest):
            case = f"{TOKENS}: {dim}"
            try:
                yield _run_tokens(judge, case, dim)
            except _NothingTellsError as why:
                yield input_result(case, "not applicable", str(why))


def _run_tokens(judge: InputJudge, case: str, dim: str) -> CaseResult:
    # At least 12 tokens, as far as the trace is good for so many.
    limit = judge.package.manifest.largest_size(dim)
    longest = max(judge.package.vectors[0].sizes[dim], _TOKENS)
    longest = longest if limit is None else min(limit, longest)
    try:
        (given,) = sized_inputs(judge.package, {dim: [longest]})
        known = judge.recorder.record(given.inputs)
    except (BackendError, ConfigError) as error:
        raise _NothingTellsError(error.message) from error
    # The short ones first: most models are not causal, and show it there.
    sizes = {*range(1, _TOKENS), longest // 2, longest - 1}
    firsts = [tuple(range(size)) for size in sorted(sizes) if 0 < size < longest]
    # A model that is not causal differs at nearly every length; a faulty kernel at few of them.
    allowed = len(firsts) // 4
    ran = _run(judge, dim, known, firsts, allowed=allowed)
    if sum(not tried.agrees for tried in ran) > allowed:
        why = f"the model is not causal along '{dim}': later tokens change earlier ones."
        raise _NothingTellsError(why)
    if len(ran) < _ENOUGH:
        why = f"the model takes too few sizes of '{dim}' to tell whether it is causal."
        raise _NothingTellsError(why)
    return _judged(judge, case, dim, known, ran)


def _run(
    judge: InputJudge,
    dim: str,
    known: VectorSet,
    picks: Sequence[Pick],
    *,
    allowed: int | None = None,
) -> list[_Ran]:
    """Run what is picked of a known run, as far as the model takes that.

    Args:
        allowed: How many may differ: behind more than that, no more is run.
    """
    manifest = judge.package.manifest
    # An axis `2*seq` or `batch*windows` is not cut by picking places along the dimension.
    for spec in manifest.inputs:
        for axis in spec.shape:
            if isinstance(axis, str) and axis != dim and dim in axis:
                why = f"'{spec.name}' has the axis '{axis}': it is not cut along '{dim}'."
                raise _NothingTellsError(why)
    runs = []
    for pick in picks:
        inputs = picked(manifest.inputs, known.inputs, dim, pick)
        runs.append(VectorSet({**known.sizes, dim: len(pick)}, inputs, {}, (), ()))
    # A run at another size shows which axes of the outputs grow with the dimension.
    other = next((run for run in runs if run.sizes[dim] != known.sizes[dim]), None)
    if other is None:
        raise _NothingTellsError(f"'{dim}' takes one size only.")
    try:
        found = judge.subject.run(other.inputs)
    except (BackendError, ConfigError) as error:
        raise _NothingTellsError(error.message) from error
    cuts = _Cuts.of(judge.package, dim, known, found, other.sizes[dim])
    if not cuts.package.manifest.outputs:
        raise _NothingTellsError(f"no output has an axis of '{dim}' alone.")
    variants = None if judge.variants is None else _OpenedOnce(judge.variants)
    judge = replace(judge, package=cuts.package, variants=variants)
    ran: list[_Ran] = []
    for pick, run in zip(picks, runs, strict=True):
        if allowed is not None and sum(not tried.agrees for tried in ran) > allowed:
            break
        with suppress(BackendError, ConfigError):  # It is not said to take every size.
            check_ranges(run.sizes, cuts.package.manifest)
            ran.append(_Ran(pick, run.inputs, judge.compare(cuts.expected(run, pick))))
    return ran


def _judged(
    judge: InputJudge, case: str, dim: str, known: VectorSet, ran: Sequence[_Ran]
) -> CaseResult:
    if not ran:
        raise _NothingTellsError(f"'{dim}' takes one size only.")
    agreeing = ", ".join(str(len(tried.pick)) for tried in ran if tried.agrees)
    wrong = [tried for tried in ran if not tried.agrees]
    if not wrong:
        return input_result(case, "passed", f"{dim} of {agreeing} give the same")
    first, size = wrong[0], known.sizes[dim]

    def cut(value: Array, other: Array | None) -> Array | None:
        # Inner values have no declared shapes: axes are found by how they grow.
        axes = [] if other is None else _axes(value.shape, other.shape, size, len(first.pick))
        return _taken(value, axes, size, first.pick) if axes else None

    where = judge.where(first.report, known.inputs, first.inputs, cut)
    sizes = ", ".join(str(len(tried.pick)) for tried in wrong)
    why = (
        f"case '{case}': {dim} of {agreeing or 'no other size'} agree, {dim} of {sizes}"
        f" do not: {first.report.reasons[0]}{where}"
    )
    return input_result(case, "failed", why)


# Every size is judged by a comparison of its own, and each would load the model again.
class _OpenedOnce:
    """Variants of a model that are opened once for runs of all sizes."""

    def __init__(self, variants: Variants) -> None:
        self.why_not_forced = cache(variants.why_not_forced)
        self._forced = cache(lambda gates, inner: variants.forced(dict(gates), inner))
        self._noisy = cache(lambda noise, gates, inner: variants.noisy(noise, dict(gates), inner))

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        return self._forced(tuple(gates.items()), tuple(inner))

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        return self._noisy(noise, tuple(gates.items()), tuple(inner))


@dataclass(frozen=True)
class _Cuts:
    """The axes along which outputs and gates of a run are cut into samples, or into tokens."""

    package: OnnxPackage  # the package, with the outputs and layers alone that can be cut
    known: VectorSet  # the run
    size: int  # how many there are in it
    outputs: Mapping[str, Sequence[int]]  # name of each output to the axes that are cut
    gates: Mapping[int, Sequence[int]]  # number of each such layer to the same

    @classmethod
    def of(
        cls,
        package: OnnxPackage,
        dim: str,
        known: VectorSet,
        found: Mapping[str, Array],
        other: int,
    ) -> _Cuts:
        """Compare the shapes of the run with those of what was found at another size."""
        manifest, size = package.manifest, known.sizes[dim]

        def axes(name: str, array: Array) -> list[int]:
            return _axes(array.shape, found[name].shape, size, other)

        outputs = {k: grows for k, array in known.outputs.items() if (grows := axes(k, array))}
        made = enumerate(zip(package.gate_names, known.gates, strict=True))
        gates = {index: grows for index, pair in made if (grows := axes(*pair))}
        rounding = manifest.rounding
        if rounding is not None:
            rounding = replace(rounding, layers=tuple(rounding.layers[index] for index in gates))
        manifest = replace(
            manifest,
            # What does not grow with the dimension cannot be cut, and is not compared.
            outputs=tuple(output for output in manifest.outputs if output.name in outputs),
            layers=tuple(manifest.layers[index] for index in gates),
            rounding=rounding,
        )
        return cls(replace(package, manifest=manifest), known, size, outputs, gates)

    def expected(self, run: VectorSet, pick: Pick) -> VectorSet:
        """Return the expected values of a run of the picked samples or tokens."""
        known, size = self.known, self.size
        outputs = {
            name: _taken(known.outputs[name], axes, size, pick)
            for name, axes in self.outputs.items()
        }

        def of_layers(recorded: Sequence[_Value]) -> tuple[_Value, ...]:
            """Cut gates, or what else was recorded of layers, as gates are cut."""
            pairs = [(recorded[index], axes) for index, axes in self.gates.items() if recorded]
            return tuple(
                array if array is None else _taken(array, axes, size, pick) for array, axes in pairs
            )

        return replace(
            run,
            outputs=outputs,
            gates=of_layers(known.gates),
            margins=of_layers(known.margins),
            scores=of_layers(known.scores),
            attention=of_layers(known.attention),
        )


def _axes(known: Sequence[int], other: Sequence[int], size: int, other_size: int) -> list[int]:
    """Return the axes that grow as a dimension does."""
    if len(known) != len(other):
        return []
    pairs = enumerate(zip(known, other, strict=True))
    # a / size == b / other_size: several windows a sample, say, grow by the same factor.
    return [axis for axis, (a, b) in pairs if a != b and a * other_size == b * size]


def _taken(array: Array, axes: Sequence[int], size: int, pick: Pick) -> Array:
    for axis in axes:
        each = array.shape[axis] // size  # windows of a sample, say
        places = (np.asarray(pick)[:, None] * each + np.arange(each)).reshape(-1)
        array = np.take(array, places, axis=axis)
    return array


def _samples(size: int, batch: int) -> Pick:
    """Pick as many samples, some more often than others: a mean over them would tell."""
    # The first samples once each, the last as often as it takes, in an order by chance.
    return tuple(np.random.default_rng(batch).permutation(np.minimum(np.arange(batch), size - 1)))
