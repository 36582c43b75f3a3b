"""Compare what a run reached with a baseline file, and tighten the file if asked to.

A ratchet turns one way: a figure in the file is replaced by a better one only. To accept a worse
one, take it out by hand and update the file: a review sees what was given up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from moh_deploy.errors import ConfigError
from moh_deploy.report.baseline.figures import KINDS, Figure, Slack, is_whole
from moh_deploy.report.baseline.result import (
    DigestState,
    FigureOutcome,
    RatchetEntry,
    RatchetResult,
)
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import read_json
from moh_deploy.system.replaceable import check_file_output
from moh_deploy.system.staging import staged_file

# The file that a ratchet is kept in: JSON, sorted, small, to be committed and read in diffs.
#
# It has a digest of all else in it, so that a figure that was changed or taken out does not pass
# unseen.

_SLACK = {"factor": "a number of at least 1", "plus": "a number of at least 0"}
_MOST_SHOWN = 60


def explained(error: ValidationError) -> str:
    """Return half a sentence on the first problem: where, what it is, what was expected."""
    found = []
    for item in error.errors(include_url=False):
        # SECTION.figures.GROUP.NAME, and behind it which of the ways to write a figure was tried,
        # which is not in the file.
        place = item["loc"]
        is_figure = place[1:2] == ("figures",)
        found.append(((*place[:4], *place[5:]) if is_figure else place, item))
    # A figure that is no interval is not one of the wrong type: that is the other way to write it.
    path, item = max(found, key=lambda item: (len(item[0]), not item[1]["type"].endswith("_type")))
    where = ".".join(map(str, path)) or "the file"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    if item["type"] == "extra_forbidden":
        return f"{where} is not a known key"
    if item["type"] == "missing":
        return f"{where} is missing"
    text = json.dumps(item["input"], default=str)
    shown = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    return f"{where} is {shown}, expected {_expected(path)}"


def _expected(path: tuple[int | str, ...]) -> str:
    if path[:1] == ("slack",):
        return _SLACK.get(str(path[2]), "a number") if len(path) == 3 else "an object"
    if path[1:] == ("machine",):
        return "a text"
    if path[1:] == ("figures",):
        return "an object of at least one group of figures"
    if len(path) == 4:
        return "a finite number, or an object of such: value, low and high"
    return "a finite number" if len(path) > 4 else "an object"


SCHEMA_VERSION: Literal[1] = 1

BaselinePart = Literal["verify", "bench"]


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class IntervalEntry(_Object):
    """A figure that was sampled."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is not between {self.low} and {self.high}")
        return self


Count = Annotated[int, Field(ge=0, lt=2**63)]
FigureEntry = Count | FiniteFloat | IntervalEntry


class SlackEntry(_Object):
    """A slack of the user's own, for one kind of figure."""

    factor: Annotated[FiniteFloat, Field(ge=1)] | None = None
    plus: Annotated[FiniteFloat, Field(ge=0)] | None = None


class SectionEntry(_Object):
    """The figures that one command reached."""

    # Where figures of a machine were measured, and with which runtime; None without any.
    machine: str | None = None
    # Group and name to figure.
    figures: Annotated[dict[str, dict[str, FigureEntry]], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        """A count below 0 would be worse than nothing, and anything would hold it."""
        _require_known(name for group in self.figures.values() for name in group)
        for (group, name), figure in self.read().items():
            domain = KINDS[name].domain
            for value in (figure.value, figure.low, figure.high):
                if not domain.holds(value):
                    raise ValueError(
                        f"figures.{group}.{name} is {value:g}, expected {domain.words}"
                    )
        return self

    def read(self) -> dict[tuple[str, str], Figure]:
        """Return the figures by group and name."""
        found = {}
        for group, entries in self.figures.items():
            for name, entry in entries.items():
                if isinstance(entry, IntervalEntry):
                    figure = Figure(group, name, entry.value, entry.low, entry.high)
                else:
                    figure = Figure.exact(group, name, entry)
                found[figure.key] = figure
        return found


class BaselineContent(_Object):
    """All of a file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    slack: dict[str, SlackEntry] = {}
    verify: SectionEntry | None = None
    bench: SectionEntry | None = None

    @model_validator(mode="after")
    def _slack_is_known(self) -> Self:
        _require_known(self.slack)
        return self

    def slack_of(self, name: str) -> Slack:
        """Return by how much a figure may be worse: as the file says, or as usual."""
        usual, said = KINDS[name].slack, self.slack.get(name, SlackEntry())
        return Slack(
            usual.factor if said.factor is None else said.factor,
            usual.plus if said.plus is None else said.plus,
        )


def read_baseline(path: Path) -> tuple[BaselineContent, DigestState]:
    """Read a file, and tell whether it is as it was written.

    Raises:
        ConfigError: It is not there, cannot be read, or holds something else.
    """
    try:
        content = read_json(path, error=ConfigError)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no baseline file.",
            hint="--update-baseline writes it from this run; commit it.",
        ) from None
    if not isinstance(content, dict) or "schema_version" not in content:
        raise ConfigError(f"{path}: is no baseline file: it has no schema_version.")
    version, plain = content["schema_version"], content
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {version!r}, this moh-deploy reads {SCHEMA_VERSION}.",
            hint="Use the moh-deploy that wrote it, or remove it and run with --update-baseline.",
        )
    written = plain.pop("sha256", None)
    try:
        found = BaselineContent.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explained(error)}.") from error
    if written is None:
        return found, "missing"
    return found, "right" if written == sha256_of_json(plain) else "wrong"


def write_baseline(path: Path, content: BaselineContent) -> None:
    """Write the file at once or not at all.

    Raises:
        PackageError: It cannot be written.
    """
    plain = content.model_dump(exclude_none=True)
    if not content.slack:
        del plain["slack"]
    text = json.dumps({**plain, "sha256": sha256_of_json(plain)}, indent=2, sort_keys=True)
    with staged_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _require_known(names: Iterable[str]) -> None:
    unknown = sorted(set(names) - KINDS.keys())
    if unknown:
        raise ValueError(f"there is no figure '{unknown[0]}', there are {', '.join(KINDS)}")


@dataclass(frozen=True)
class Ratchet:
    """One command's part of a baseline file."""

    path: Path
    content: BaselineContent  # What is in it; of a file that is to be made, nothing
    section: BaselinePart
    update: bool  # Write what is new or better
    digest: DigestState = "right"  # Whether the file is as it was written

    @classmethod
    def open(
        cls, path: Path | str | None, section: BaselinePart, *, update: bool
    ) -> Ratchet | None:
        """Read a file before anything is run; None without a path.

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

        Raises:
            ConfigError: The file is of something else.
            PackageError: It cannot be written.
        """
        was = {} if self.entry is None else self.entry.read()
        here = {figure.group for figure in figures if not figure.group.startswith(WHOLE)}
        there = {group for group, _ in was if not group.startswith(WHOLE)}
        # A file of another model would be all `gone` and all `new`.
        if there and not there & here:
            raise ConfigError(
                f"{self.path} is of another package or other inputs: it holds figures of"
                f" {_some(there)}; this run has {_some(here)}.",
                hint="Name the file of this one, or another file with --update-baseline.",
            )
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
        taken = {entry.key for entry in entries if entry.outcome in ("better", "new")}
        groups: dict[str, dict[str, FigureEntry]] = {}
        for key, figure in {**was, **{key: now[key] for key in taken}}.items():
            groups.setdefault(key[0], {})[key[1]] = _entry(figure)
        known = machine if self.entry is None else self.entry.machine
        section = SectionEntry(machine=known, figures=groups)
        write_baseline(self.path, self.content.model_copy(update={self.section: section}))
        return replace(result, updated=True)

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


WHOLE = "all"
"""Begins the group of what is not of one output, layer or set of inputs."""


def _some(groups: set[str]) -> str:
    first, *others = sorted(groups) or ["nothing"]
    return f"{first} and {len(others)} more" if others else first


def _entry(figure: Figure) -> FigureEntry:
    """Return what the file says of a figure, to six digits; whole numbers stay whole: 160."""
    low, value, high = (
        int(number) if is_whole(number) else float(f"{number:.6g}")
        for number in (figure.low, figure.value, figure.high)
    )
    if figure.low == figure.high:
        return value
    return IntervalEntry(value=value, low=low, high=high)
