"""What must not be found: with any of it, a run of the tables fails."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.validate.mutations.faults import FAULTS
from tests.validate.mutations.packages import Precision
from tests.validate.mutations.planting import Planted
from tests.validate.mutations.subjects import SUBJECTS
from tests.validate.mutations.tables import written
from tests.validate.mutations.variations import Varied

IN_THE_DOCS = frozenset(model.name for model in SUBJECTS[:14])
"""The models of two to four layers, whose rates docs/verify-method.md has."""

LEAST_REFUSED: Mapping[Precision, float] = {"float16": 0.97, "bfloat16": 0.91}
"""A percent below the rates there: another processor rounds otherwise. Graphs in float32 have no
rate, whatever kernels round: all faults are refused."""


def problems(planted: Sequence[Planted], varied: Sequence[Varied], *, whole: bool) -> Iterator[str]:
    """Yield a sentence for each.

    Args:
        whole: Every fault was to be planted in every model: then rates are judged, too.
    """
    for row in planted:
        yield from (f"{_title(row)}: {problem}" for problem in _of_fault(row))
    for item in written(varied):
        if item.verdict.refused and (_is_promised(item) or item.verdict.crashed):
            yield f"{item.model} in {item.precision}, {item.variation}: refused, though it is right"
    if whole:
        yield from _of_all(planted)


def _is_promised(one: Varied) -> bool:
    """Tell whether docs/verify-method.md says that it is accepted.

    In half precision an expert's choice may be another one: that goes for the models there.
    """
    return one.precision not in LEAST_REFUSED or one.model in IN_THE_DOCS


def _title(row: Planted) -> str:
    return f"{row.model} in {row.precision}, {row.layer}, {row.fault}"


def _of_fault(row: Planted) -> Iterator[str]:
    if row.verdict.crashed or (row.beside is not None and row.beside.crashed):
        yield "verify crashed"
    if row.beside is not None and row.beside.refused and not row.right_is_refused:
        yield "the function bodies are refused, though kernels alone are wrong"
    if row.precision in LEAST_REFUSED:
        return
    if row.right_is_refused:
        yield "refused without any fault, too"
    if row.has_effect and not row.verdict.refused and not row.is_in_scores_only:
        yield f"accepted, though {row.ratio:.1f} times the floor"


def _of_all(planted: Sequence[Planted]) -> Iterator[str]:
    for fault in sorted(set(FAULTS) - {row.fault for row in planted}):
        yield f"{fault}: planted nowhere"
    by_precision: dict[Precision, list[Planted]] = defaultdict(list)
    for row in planted:
        by_precision[row.precision].append(row)
    for precision, rows in by_precision.items():
        left_out = _models(row for row in rows if row.right_is_refused)
        if 2 * len(left_out) > len(_models(rows)):
            yield f"{precision}: the right packages of {', '.join(sorted(left_out))} are refused"
        if precision in LEAST_REFUSED:
            yield from _of_rate(precision, rows)


def _of_rate(precision: Precision, rows: Sequence[Planted]) -> Iterator[str]:
    judged = [row for row in rows if row.model in IN_THE_DOCS and not row.right_is_refused]
    real = [row for row in judged if row.has_effect]
    refused = sum(row.verdict.refused for row in real)
    least = LEAST_REFUSED[precision]
    if refused < least * len(real):
        yield f"{precision}: {refused} of {len(real)} faults are refused, fewer than {least:.0%}"


def _models(rows: Iterable[Planted]) -> set[str]:
    return {row.model for row in rows}
