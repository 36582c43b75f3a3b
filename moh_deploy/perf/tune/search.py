"""Find the runtime, the precision and the way of each layer that are fastest and still good.

Candidates are taken one after the other, each against the fastest so far.
"""

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from moh_deploy.errors import BackendError, MoHDeployError, PackageError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune.contests import Best, Contests, ended_by, folder_of
from moh_deploy.perf.tune.quality import Quality
from moh_deploy.perf.tune.report import FLOAT32, RuntimePrecision, Timed, Tried
from moh_deploy.system.bounded_file import read_bytes
from moh_deploy.system.isolate import Outcome, how_it_ended, isolated
from moh_deploy.system.progress import Progress
from moh_deploy.system.staging import staged_file

TakesCandidates: TypeAlias = "Contests | ContestsApart"


@dataclass(frozen=True)
class _Kept:
    """What a search knows before it tries the next way, as JSON."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"ser_json_inf_nan": "constants"}

    way: RuntimePrecision  # of the fastest so far
    package: str  # its place, from the scratch directory
    quality: Quality
    sizes: tuple[dict[str, int], ...]
    timed: Timed | None
    tried: tuple[Tried, ...]


_KEPT = TypeAdapter(_Kept)
_KEPT_NAME, _MOST_BYTES = "search.json", 2**26


@dataclass
class Search:
    """Searches among ways to run one float32 package."""

    base: OnnxPackage  # the package, in float32
    ways: Sequence[RuntimePrecision]  # what to try, the float32 package itself first
    contests: TakesCandidates  # what takes candidates
    scratch: Path  # a directory for packages
    best: Best | None = None  # the fastest so far that is good
    tried: list[Tried] = field(default_factory=list)
    _made: dict[str, OnnxPackage | MoHDeployError] = field(default_factory=dict)

    def run(self, before: Callable[[RuntimePrecision | None], object] = lambda way: None) -> Best:
        """Try every way, and return the best; `tried` has how each ended.

        Args:
            before: Called before each way is tried, with it, and with None at the end.

        Raises:
            ValidationError: Not even the float32 package meets the conditions.
        """
        known = {row.way for row in self.tried} | ({self.best.way} if self.best else set())
        for way in (way for way in self.ways if way not in known):
            before(way)
            self._remove_beaten()
            if self.best is None:
                self.best = self.contests.first(way)
                continue
            too_few = self.best.quality.too_few
            if too_few is not None and way.precision != FLOAT32:
                # What the float32 package itself cannot show, no other precision can.
                self.tried.append(Tried(way, "not good", f"it cannot be judged: {too_few}"))
                continue
            challenger = self._challenge(way, self.best)
            if isinstance(challenger, Tried):
                self.tried.append(challenger)
                continue
            assert challenger.timed is not None
            beaten = challenger.timed.inverse(way.name)
            row = Tried(self.best.way, "too slow", beaten.sentence(), beaten, self.best.quality)
            self.tried.append(row)
            self.best = challenger
        before(None)
        self._remove_beaten()
        assert self.best is not None
        self.tried.append(Tried(self.best.way, "chosen", None, self.best.timed, self.best.quality))
        # In the order in which they were to be tried.
        self.tried.sort(key=lambda row: self.ways.index(row.way))
        return self.best

    def keep(self) -> None:
        """Write into the scratch directory what is known so far, for `resume`.

        Raises:
            PackageError: It cannot be written.
        """
        if self.best is None:
            return
        best, package = self.best, os.path.relpath(self.best.package.root, self.scratch)
        sizes = tuple(map(dict, best.sizes))
        kept = _Kept(best.way, package, best.quality, sizes, best.timed, tuple(self.tried))
        with staged_file(self.scratch / _KEPT_NAME) as partial:
            partial.write_bytes(_KEPT.dump_json(kept))

    def resume(self) -> None:
        """Take over what an earlier search of the same ways has kept in the scratch directory.

        What it was trying when it ended is tried again; where it kept nothing, or something that
        has changed since, all is.
        """
        path = self.scratch / _KEPT_NAME
        try:
            content = read_bytes(path, most_bytes=_MOST_BYTES, error=PackageError)
            kept = _KEPT.validate_json(content)
        except (FileNotFoundError, PackageError, ValidationError):
            return
        package = earlier_package(self.scratch / kept.package)
        if package is None:
            return
        self.best = Best(kept.way, package, kept.quality, kept.sizes, kept.timed)
        self.tried = list(kept.tried)

    def _remove_beaten(self) -> None:
        """Remove what was tuned of all ways but the best, also what an interruption has left."""
        for way in self.ways:
            if self.best is None or way != self.best.way:
                shutil.rmtree(folder_of(self.scratch, way), ignore_errors=True)

    def _challenge(self, way: RuntimePrecision, best: Best) -> Best | Tried:
        try:
            return self.contests.challenge(way, self._package(way.precision), best)
        except MoHDeployError as error:
            return Tried(way, *ended_by(error))

    def _package(self, precision: str) -> OnnxPackage:
        """Return the package in a precision, or the error; each is made once."""
        if precision == self.base.manifest.precision:
            return self.base
        if precision not in self._made:
            folder = self.scratch / precision
            try:
                made = earlier_package(folder) or self.contests.make(precision, folder)
                self._made[precision] = made
            except MoHDeployError as error:
                self._made[precision] = error
        found = self._made[precision]
        if isinstance(found, MoHDeployError):
            raise found
        return found


def earlier_package(path: Path) -> OnnxPackage | None:
    """Return the package that an earlier run has left; None if it is missing or has changed."""
    try:
        return OnnxPackage.open(path)
    except PackageError:
        return None


def write_chosen(best: Best, output: Path, within: Sequence[str]) -> OnnxPackage:
    """Write the chosen package: it says what it runs in, and what it was chosen by.

    Raises:
        PackageError: It cannot be written.
    """
    manifest = best.package.manifest
    tuning = None if manifest.tuning is None else replace(manifest.tuning, within=tuple(within))
    return write_choices(
        best.package, manifest.layers, output, tuning=tuning, runtime=best.way.runtime
    )


# Take each candidate of a search in a process of its own, so that one that crashes is one row.
#
# Kernels and runtimes are native code: a fault in them ends a process, and so does a system that is
# short of memory.

_Answer = TypeVar("_Answer")


class SearchTask(Protocol):
    """Knows all that a search needs, and can be pickled."""

    def made(self, to: str, folder: Path, progress: Progress) -> OnnxPackage:
        """Write the package in a precision; see `MakePackage`."""

    def contests(self, scratch: Path, progress: Progress) -> AbstractContextManager[Contests]:
        """Open what takes candidates, with packages in a directory."""


@dataclass(frozen=True)
class ContestsApart:
    """Takes one candidate after the other, each in another process, which ends with this one."""

    task: SearchTask  # the search
    scratch: Path  # a directory for packages
    shows_steps: bool = False  # processes show their steps where stderr is a terminal

    def make(self, to: str, folder: Path) -> OnnxPackage:
        """Write the package in a precision.

        Raises:
            MoHDeployError: It cannot be made, or is not equal to the original.
            BackendError: The process was ended by a signal.
        """
        try:
            return self._answer(_made, to, folder)
        except _CrashedError as error:
            raise BackendError(f"it cannot be made: {error}") from error

    def first(self, way: RuntimePrecision) -> Best:
        """See `Contests.first`; as well:

        Raises:
            BackendError: The process was ended by a signal.
        """
        try:
            return self._answer(_first, way, self.scratch)
        except _CrashedError as error:
            raise BackendError(f"the float32 package cannot be run: {error}") from error

    def challenge(self, way: RuntimePrecision, made: OnnxPackage, best: Best) -> Best | Tried:
        """See `Contests.challenge`; a process that is ended by a signal is a candidate that is."""
        try:
            return self._answer(_challenge, way, made, best, self.scratch)
        except _CrashedError as error:
            return Tried(way, "could not run", str(error))

    def _answer(self, function: Callable[..., _Answer], *arguments: object) -> _Answer:
        found = isolated(function, self.task, *arguments, show_steps=self.shows_steps)
        crash = _crash(found)
        if crash is not None:
            raise _CrashedError(crash)
        if found.exception is not None:
            # A fault of ours is no candidate's; the traceback was shown there.
            raise RuntimeError(f"in the process of a candidate: {found.exception}")
        return found.required("the process of a candidate")


"""Lets a search ask of each candidate: here, or in processes of their own."""


class _CrashedError(Exception):
    """A process was ended from outside, or by its own native code."""


def _crash(found: Outcome[_Answer]) -> str | None:
    """Say what ended a process before it could answer; None if it did, or raised."""
    at = "" if found.step is None else f", at '{found.step}'"
    if found.exception is not None and found.exception.startswith("MemoryError"):
        return f"its process had no more memory{at}."
    code = found.return_code
    if code is None or found.exception or found.error or found.answer is not None:
        return None
    if code >= 0:
        return f"its process ended with status {code}{at}."
    short = " A system that is short of memory does that." if -code == signal.SIGKILL else ""
    return f"its process ended by signal {-code} ({how_it_ended(code)}){at}.{short}"


def _made(task: SearchTask, to: str, folder: Path, *, progress: Progress) -> OnnxPackage:
    return task.made(to, folder, progress)


def _first(task: SearchTask, way: RuntimePrecision, scratch: Path, *, progress: Progress) -> Best:
    with task.contests(scratch, progress) as contests:
        return contests.first(way)


def _challenge(
    task: SearchTask,
    way: RuntimePrecision,
    made: OnnxPackage,
    best: Best,
    scratch: Path,
    *,
    progress: Progress,
) -> Best | Tried:
    with task.contests(scratch, progress) as contests:
        return contests.challenge(way, made, best)
