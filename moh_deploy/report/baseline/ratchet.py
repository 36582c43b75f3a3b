"""Compare what a run reached with a baseline file, and tighten the file if asked to.

A ratchet turns one way: a figure in the file is replaced by a better one only. To accept a worse
one, take it out by hand and update the file: a review sees what was given up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.report.baseline.baseline_file import (
    BaselineContent,
    BaselinePart,
    SectionEntry,
    read_baseline,
    section_of,
    write_baseline,
)
from moh_deploy.report.baseline.figures import KINDS, Figure
from moh_deploy.report.baseline.result import (
    DigestState,
    FigureOutcome,
    RatchetEntry,
    RatchetResult,
)
from moh_deploy.system.replaceable import check_file_output


@dataclass(frozen=True)
class Ratchet:
    """One command's part of a baseline file.

    Attributes:
        path: The file.
        content: What is in it; of a file that is to be made, nothing.
        section: The command.
        update: Write what is new or better.
        digest: Whether the file is as it was written.
    """

    path: Path
    content: BaselineContent
    section: BaselinePart
    update: bool
    digest: DigestState = "right"

    @classmethod
    def open(
        cls, path: Path | str | None, section: BaselinePart, *, update: bool
    ) -> Ratchet | None:
        """Read a file before anything is run; None if there is none to compare with.

        Raises:
            ConfigError: It is missing, was edited, or has nothing of this command, and is not to be
                written; or it is to be written and not named.
            PackageError: It is to be written where it cannot be.
        """
        if path is None:
            if update:
                raise ConfigError(
                    "update_baseline is given without a baseline file, expected both.",
                    hint="--baseline-file FILE names it.",
                )
            return None
        path = Path(path)
        if update:
            check_file_output(path, None)  # it is read below
        if update and not os.path.exists(path):
            return cls(path, BaselineContent(), section, update)
        content, digest = read_baseline(path)
        if digest == "wrong" and not update:
            raise ConfigError(
                f"{path} was edited since it was written: its sha256 is of other figures.",
                hint="--update-baseline accepts the edits: the diff shows them to a review."
                " Otherwise get the file again from version control.",
            )
        ratchet = cls(path, content, section, update, digest)
        if ratchet.entry is None and not update:
            raise ConfigError(
                f"{path} holds nothing of {section}.", hint="--update-baseline adds this run."
            )
        return ratchet

    @property
    def entry(self) -> SectionEntry | None:
        return self.content.verify if self.section == "verify" else self.content.bench

    def judge(self, figures: Sequence[Figure], *, machine: str | None = None) -> RatchetResult:
        """Compare a run that has passed otherwise; write the file if that is asked for.

        Nothing is written if anything is worse or gone, or if nothing has changed, by hand either.

        Args:
            figures: What the run reached.
            machine: Where, and with which runtime.

        Raises:
            ConfigError: The file is of something else.
            PackageError: It cannot be written.
        """
        was = {} if self.entry is None else self.entry.read()
        self._require_same_subject(was, figures)
        now = {figure.key: figure for figure in figures}
        entries = tuple(
            self._compared(key, was.get(key), now.get(key), machine) for key in sorted({*was, *now})
        )
        result = RatchetResult(str(self.path), entries, updated=False, digest=self.digest)
        outcomes = {entry.outcome for entry in entries}
        if not self.update or outcomes & {"worse", "gone"}:
            return result
        if not outcomes & {"better", "new"} and self.digest == "right":
            return result
        self._write(was, figures, entries, machine)
        return replace(result, updated=True)

    def _require_same_subject(
        self, was: dict[tuple[str, str], Figure], figures: Sequence[Figure]
    ) -> None:
        """A file of another model would be all `gone` and all `new`."""
        here = _subjects(figure.group for figure in figures)
        there = _subjects(group for group, _ in was)
        if there and not there & here:
            raise ConfigError(
                f"{self.path} is of another package or other inputs: it holds figures of"
                f" {_some(there)}; this run has {_some(here)}.",
                hint="Name the file of this one, or another file with --update-baseline.",
            )

    def _compared(
        self, key: tuple[str, str], was: Figure | None, now: Figure | None, machine: str | None
    ) -> RatchetEntry:
        group, name = key
        kind, slack = KINDS[name], self.content.slack_of(name)
        what = f"{group}: {kind.words}"
        values = (None if was is None else was.value, None if now is None else now.value)
        if self.entry is not None and kind.of_machine and machine != self.entry.machine:
            sentence = f"{what}: not compared, the file is of {self.entry.machine}."
            return RatchetEntry(group, name, "not compared", *values, None, sentence)
        if was is None:
            assert now is not None
            sentence = f"{what}: {kind.text(now)}, which the file does not have."
            return RatchetEntry(group, name, "new", *values, None, sentence)
        if now is None:
            sentence = f"{what}: was {kind.text(was)}, and is not there any more."
            return RatchetEntry(group, name, "gone", *values, None, sentence)
        limit = kind.limit(was, slack, now.grain)
        sentence = f"{what}: {kind.text(now)}, was {kind.text(was)}{kind.limit_text(limit)}."
        if kind.is_worse(now, was, slack):
            return RatchetEntry(group, name, "worse", *values, limit, sentence)
        outcome: FigureOutcome = "better" if kind.is_better(now, was, slack) else "held"
        return RatchetEntry(group, name, outcome, *values, limit, sentence)

    def _write(
        self,
        was: dict[tuple[str, str], Figure],
        figures: Sequence[Figure],
        entries: Sequence[RatchetEntry],
        machine: str | None,
    ) -> None:
        taken = {
            (entry.group, entry.name) for entry in entries if entry.outcome in ("better", "new")
        }
        kept = {**was, **{figure.key: figure for figure in figures if figure.key in taken}}
        known = machine if self.entry is None else self.entry.machine
        section = section_of(kept.values(), known)
        write_baseline(self.path, self.content.model_copy(update={self.section: section}))


WHOLE = "all"
"""Begins the group of what is not of one output, layer or set of inputs."""


def _subjects(groups: Iterable[str]) -> set[str]:
    return {group for group in groups if not group.startswith(WHOLE)}


def _some(groups: set[str]) -> str:
    first, *others = sorted(groups) or ["nothing"]
    return f"{first} and {len(others)} more" if others else first
