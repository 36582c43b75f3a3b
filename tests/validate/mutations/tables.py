"""What was found, as tables."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tests.validate.mutations.planting import WITHOUT_EFFECT, Planted
from tests.validate.mutations.variations import AS_PRECISION_WRITES, Varied


def fault_table(rows: Sequence[Planted]) -> Iterator[str]:
    """Yield the lines of a table: a fault in a precision a line, and what stands out below.

    `accepted` leaves out what scores alone show; `named` counts refusals that name the layer, and
    `others` those that name another one, perhaps besides.
    """
    yield (
        f"{'fault':32}{'precision':>10}{'planted':>9}{'no effect':>11}{'refused':>9}"
        f"{'accepted':>10}{'in scores':>11}{'named':>7}{'others':>8}"
    )
    refused = {f"{row.model} in {row.precision}" for row in rows if row.right_is_refused}
    rows = [row for row in rows if not row.right_is_refused]
    groups: dict[tuple[str, str], list[Planted]] = defaultdict(list)
    for row in rows:
        groups[row.fault, row.precision].append(row)
    for (fault, precision), planted in groups.items():
        yield _line(fault, precision, planted)
    for precision in dict.fromkeys(row.precision for row in rows):
        yield _line("ALL", precision, [row for row in rows if row.precision == precision])
    yield f"left out, for the right package is refused: {', '.join(sorted(refused)) or 'none'}"
    yield from _listed(
        "accepted with an effect", (row for row in _accepted(rows) if not row.is_in_scores_only)
    )
    yield from _listed(
        "accepted with an effect on scores alone",
        (row for row in _accepted(rows) if row.is_in_scores_only),
    )
    yield from _listed("refused without an effect", _refused_without(rows))
    yield from _listed(
        "function bodies refused, though kernels alone are wrong",
        (row for row in rows if row.beside is not None and row.beside.refused),
    )
    yield from _listed("verify crashed", (row for row in rows if row.verdict.crashed))


def _line(fault: str, precision: str, rows: Sequence[Planted]) -> str:
    real = [row for row in rows if row.has_effect]
    refused = [row for row in real if row.verdict.refused]
    named = sum(row.named_rightly for row in refused)
    others = sum(bool(row.others_named) for row in refused)
    accepted = [row for row in real if not row.verdict.refused]
    in_scores = sum(row.is_in_scores_only for row in accepted)
    return (
        f"{fault:32}{precision:>10}{len(real):9}{len(rows) - len(real):11}{len(refused):9}"
        f"{len(accepted) - in_scores:10}{in_scores:11}{named:7}{others:8}"
    )


def _accepted(rows: Iterable[Planted]) -> Iterator[Planted]:
    found = [row for row in rows if row.has_effect and not row.verdict.refused]
    yield from sorted(found, key=lambda row: -row.ratio)


def _refused_without(rows: Iterable[Planted]) -> Iterator[Planted]:
    yield from (row for row in rows if not row.has_effect and row.verdict.refused)


def _listed(title: str, rows: Iterable[Planted]) -> Iterator[str]:
    found = list(rows)
    yield ""
    yield f"{title}: {len(found)}"
    for row in found:
        worst = row.effects[0]
        yield (
            f"  {row.precision:9} {row.model:22} {row.layer:20} {row.fault:30} {worst.value:14}"
            f" {worst.size:.1e}, {row.ratio:.1f} times the floor"
        )


def without_effect(rows: Sequence[Planted]) -> Iterator[str]:
    """Yield a line for each fault that moves nothing by more than rounding does."""
    found = [row for row in rows if not row.has_effect]
    yield f"below {WITHOUT_EFFECT:g} times the floor: {len(found)}"
    for row in found:
        worst, answer = row.effects[0], "refused" if row.verdict.refused else "accepted"
        yield (
            f"  {row.precision:9} {row.model:22} {row.layer:20} {row.fault:30} {worst.value:14}"
            f" {worst.size:.1e}, {row.ratio:.2f}, {answer}"
        )


def honest_table(rows: Sequence[Varied]) -> Iterator[str]:
    """Yield the lines of the table of variations, and those that were refused below.

    What `precision` refuses to write is no package that anybody has: it is left out, and listed.
    """
    yield f"{'variation':40}{'precision':>10}{'accepted':>10}{'refused':>9}"
    unwritten = _unwritten(rows)
    rows = written(rows)
    groups: dict[tuple[str, str], Counter[bool]] = defaultdict(Counter)
    for row in rows:
        groups[row.variation, row.precision][row.verdict.refused] += 1
    for (variation, precision), counts in groups.items():
        yield f"{variation:40}{precision:>10}{counts[False]:10}{counts[True]:9}"
    refused = [row for row in rows if row.verdict.refused]
    yield f"{'ALL':40}{'':>10}{len(rows) - len(refused):10}{len(refused):9}"
    for row in refused:
        yield f"  {row.precision:9} {row.model:22} {row.variation:30} {row.verdict.message[:300]}"
    yield ""
    yield f"left out, for `precision` refuses to write it: {len(unwritten)}"
    for (model, precision), message in unwritten.items():
        yield f"  {precision:9} {model:22} {message[:300]}"


def written(rows: Sequence[Varied]) -> list[Varied]:
    """Leave out the rows of packages that `precision` refuses to write."""
    unwritten = _unwritten(rows)
    return [row for row in rows if (row.model, row.precision) not in unwritten]


def _unwritten(rows: Sequence[Varied]) -> dict[tuple[str, str], str]:
    """Return model and precision of those packages to why."""
    return {
        (row.model, row.precision): row.verdict.message
        for row in rows
        if row.variation == AS_PRECISION_WRITES and row.verdict.refused
    }
