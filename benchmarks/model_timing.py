"""Interleaved timing of whole models, and the check that all of them compute the original."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from interleaving import interleaved_ms
from model_candidates import Candidate
from op_timing import WrongOutput

from moh_deploy.package import VectorSet
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.tolerances import TOLERANCES, tolerance_for


@dataclass(frozen=True)
class Reference:
    """What the original computes.

    Attributes:
        outputs: By name, in order.
        undecided: (layer, token) pairs in which rounding decides which heads are chosen.
    """

    outputs: Mapping[str, Array]
    undecided: int


@dataclass(frozen=True)
class Parity:
    """How far a candidate is from the original.

    Attributes:
        max_abs_error: Over all outputs.
        excused: The error is beyond rounding, and may come from an undecided choice of heads.
    """

    max_abs_error: float
    excused: bool


def reference_of(original: Candidate, names: Sequence[str], vectors: VectorSet) -> Reference:
    """Run the original module once.

    Args:
        names: Of the outputs.
        vectors: The recorded run with the same inputs; says how clear each choice of heads is.
    """
    outputs = dict(zip(names, original.read(original.run()), strict=True))
    rule = tolerance_for("float32")
    undecided = sum(int(np.count_nonzero(margin < rule.near_tie)) for margin in vectors.margins)
    return Reference(outputs, undecided)


def check(candidate: Candidate, results: object, reference: Reference) -> Parity:
    """Compare outputs with the original's.

    Raises:
        WrongOutput: They differ by more than rounding, and every choice of heads is clear; or by
            more than another choice of heads explains.
    """
    got = candidate.read(results)
    if len(got) != len(reference.outputs):
        raise WrongOutput(
            f"{candidate.name} gives {len(got)} outputs, expected {len(reference.outputs)}."
        )
    checked = [
        _check_output(candidate.name, name, array, reference)
        for (name, expected), array in zip(reference.outputs.items(), got, strict=True)
    ]
    return Parity(
        max(item.max_abs_error for item in checked), any(item.excused for item in checked)
    )


def _check_output(who: str, name: str, got: Array, reference: Reference) -> Parity:
    expected = reference.outputs[name]
    rule = tolerance_for(expected.dtype.name)
    found = compare_output(name, who, got, expected, rule)
    if found.reason is None:
        return Parity(found.max_abs_error, excused=False)
    after_flip = TOLERANCES["float16"].after_flip()
    allowed = after_flip.limit(float(np.abs(expected).max()))
    if reference.undecided and found.max_abs_error <= allowed:
        return Parity(found.max_abs_error, excused=True)
    raise WrongOutput(
        f"{found.reason} The choice of heads is unclear for {reference.undecided} tokens."
    )


def measure(
    candidates: Sequence[Candidate], reference: Reference, *, threads: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, Parity]]:
    """Time the candidates in turn, in another order each round, and check each first and last run.

    Returns:
        Milliseconds of one run in each round: of CPU time on one thread, by the clock on the wall
        on several; and how far each candidate is from the original.

    Raises:
        WrongOutput: One of them does not compute the original.
    """
    parity = {
        candidate.name: check(candidate, candidate.run(), reference) for candidate in candidates
    }
    runs_ms = interleaved_ms(
        [candidate.run for candidate in candidates], threads=threads, rounds=repeats
    )
    for candidate in candidates:
        check(candidate, candidate.run(), reference)
    return {item.name: ms for item, ms in zip(candidates, runs_ms, strict=True)}, parity
