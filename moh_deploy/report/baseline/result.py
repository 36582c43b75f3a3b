"""Compare a run with a baseline file."""

from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.errors import ValidationError
from moh_deploy.report import document as doc
from moh_deploy.report.report import HIDDEN, in_json

DigestState = Literal["right", "wrong", "missing"]
FigureOutcome = Literal["held", "better", "worse", "gone", "new", "not compared"]


@dataclass(frozen=True)
class RatchetEntry:
    """A figure, compared with a baseline file."""

    group: str
    name: str
    # `held` is no worse than allowed, `gone` is in the file only, `new` in the run only, and `not
    # compared` is of another machine.
    outcome: FigureOutcome
    was: float | None  # In the file
    now: float | None  # In the run
    limit: float | None  # What it may be at worst
    sentence: str

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.name

    @property
    def is_good(self) -> bool | None:
        """Tell whether it is as good as it has to be; None where nothing is compared."""
        if self.outcome in ("worse", "gone"):
            return False
        return None if self.outcome in ("new", "not compared") else True


@dataclass(frozen=True)
class RatchetResult:
    """The comparison with a baseline file."""

    file: str  # The file, as the user named it
    entries: tuple[RatchetEntry, ...]  # Every figure of the file or of the run
    updated: bool  # The file has been written: with what is new and what is better
    # The file's own: `wrong` after an edit by hand, `missing` in a file of before.
    digest: DigestState = field(default="right", metadata=HIDDEN)

    @property
    @in_json()
    def passed(self) -> bool:
        """Nothing is worse, and something was compared."""
        return not self.reasons

    @property
    @in_json()
    def reasons(self) -> tuple[str, ...]:
        """Every sentence on what is worse, or on why nothing could be."""
        if self._is_without_data:
            return (f"no figure of {self.file} could be compared, so nothing is proven.",)
        return tuple(entry.sentence for entry in self.entries if entry.outcome in ("worse", "gone"))

    @property
    def better(self) -> tuple[str, ...]:
        """Every sentence on what is better than in the file."""
        return tuple(entry.sentence for entry in self.entries if entry.outcome == "better")

    @property
    def summary(self) -> str:
        """Return a line: the file, and the number of figures of each outcome."""
        outcomes = [entry.outcome for entry in self.entries]
        counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes)]
        words = f"{self.file}: {', '.join(counts) or 'no figures'}"
        if self.digest == "wrong":
            words += "; it was edited by hand"
        if self.updated:
            return f"{words}; written"
        if self.digest == "missing":
            words += (
                "; it has no digest, so an edit of it is not seen: --update-baseline writes one"
            )
        could = {"better", "new"} & set(outcomes) and not self.reasons
        return f"{words}; --update-baseline would tighten it" if could else words

    @property
    def failure(self) -> ValidationError | None:
        """The error that names what is worse."""
        if not self.reasons:
            return None
        first, *others = self.reasons
        if self._is_without_data:
            return ValidationError(first)
        more = f" ({len(others)} more)" if others else ""
        return ValidationError(
            f"worse than {self.file}: {first}{more}",
            hint=f"If that is to be accepted, take the figure out of {self.file} by hand and run"
            " again with --update-baseline: the diff shows what was given up.",
        )

    @property
    def _is_without_data(self) -> bool:
        return not self.updated and all(entry.limit is None for entry in self.entries)


# What a report says of its comparison with a baseline file.

_COLUMNS = ("figure", "of", "#in the file", "#now", "#may be at worst", "outcome")


def baseline_section(result: RatchetResult | None) -> doc.Section | None:
    """Return every figure, what is worse, and what could be tightened; None without a file."""
    if result is None:
        return None
    rows: list[tuple[doc.Cell, ...]] = []
    for entry in result.entries:
        status = doc.Status(entry.outcome, entry.is_good)
        rows.append((entry.name, entry.group, entry.was, entry.now, entry.limit, status))
    verdict = doc.Verdict(
        "WORSE" if result.reasons else "NO WORSE",
        not result.reasons,
        lines=(result.summary,),
        reasons=result.reasons,
        notes=tuple(f"better: {text}" for text in result.better),
    )
    table = doc.Table(result.summary, _COLUMNS, rows, "ratchet", doc.PAGE)
    return doc.Section("Baseline file", (table,), verdict)


def baseline_suites(result: RatchetResult | None) -> tuple[doc.CiSuite, ...]:
    """Return a test case for each figure, and one for the verdict; nothing without a file."""
    if result is None:
        return ()
    outcomes: dict[bool | None, doc.CiOutcome]
    outcomes = {True: "passed", False: "failure", None: "skipped"}
    message = (*result.reasons, result.summary)[0]
    cases = [doc.CiCase("baseline", "verdict", outcomes[not result.reasons], message)]
    for entry in result.entries:
        name, outcome = f"{entry.group}: {entry.name}", outcomes[entry.is_good]
        cases.append(doc.CiCase("baseline", name, outcome, entry.sentence))
    return (doc.CiSuite(tuple(cases), f"baseline {result.file}"),)
