"""Split a reference's samples: those with gates, and those of which it knows the outputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moh_deploy.validate.reference import Answers


@dataclass(frozen=True)
class Answered:
    """Samples that make one comparison, because the reference knows the same of each.

    Attributes:
        reference: In the words of a report.
        answers: Of these samples alone.
        numbers: The places of these samples among all of them.
    """

    reference: str
    answers: Answers
    numbers: Sequence[int]


def by_gates(reference: str, answers: Answers) -> list[Answered]:
    """Return the answers with gates, then those without; only what there is.

    Args:
        reference: Its name.
        answers: To all samples.
    """
    whole, alone = range(len(answers.vectors)), answers.without_gates
    # Every sample has as much: one comparison, under the reference's own name.
    if not alone:
        return [Answered(reference, answers, whole)]
    known = _part(reference, answers, [number for number in whole if number not in alone])
    rest = _part(f"{reference}, outputs alone", answers, sorted(alone))
    notes = (*answers.notes, *dict.fromkeys(alone.values()))
    # Many samples share a reason, and the report needs it once.
    rest = replace(rest, answers=replace(rest.answers, has_gates=False, notes=notes))
    return [known, rest] if known.numbers else [rest]


def _part(reference: str, answers: Answers, numbers: Sequence[int]) -> Answered:
    vectors = tuple(answers.vectors[number] for number in numbers)
    return Answered(reference, replace(answers, vectors=vectors, without_gates={}), numbers)
