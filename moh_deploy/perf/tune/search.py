"""Find the runtime, the precision and the way of each layer that are fastest and still good.

Candidates are taken one after the other, each against the fastest so far.
"""

import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from moh_deploy.errors import BackendError, MoHDeployError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune.contests import Best, Contests, ended_by, folder_of
from moh_deploy.perf.tune.report import RuntimePrecision, Tried
from moh_deploy.system.isolate import Outcome, how_it_ended, isolated
from moh_deploy.system.progress import Progress

TakesCandidates: TypeAlias = "Contests | ContestsApart"


@dataclass
class Search:
    """Searches among ways to run one float32 package."""

    base: OnnxPackage  # the package, in float32
    ways: Sequence[RuntimePrecision]  # what to try, the float32 package itself first
    contests: TakesCandidates  # what takes candidates
    scratch: Path  # a directory for packages
    tried: list[Tried] = field(default_factory=list)
    _made: dict[str, OnnxPackage | MoHDeployError] = field(default_factory=dict)

    def run(self) -> Best:
        """Try every way, and return the best; `tried` has how each ended.

        Raises:
            ValidationError: Not even the float32 package can be shown to meet the conditions.
        """
        first, *others = self.ways
        best = self.contests.first(first)
        for way in others:
            challenger = self._challenge(way, best)
            if isinstance(challenger, Tried):
                self.tried.append(challenger)
                shutil.rmtree(folder_of(self.scratch, way), ignore_errors=True)
                continue
            assert challenger.timed is not None
            beaten = challenger.timed.inverse(way.name)
            reason = beaten.sentence()
            self.tried.append(Tried(best.way, "too slow", reason, beaten, best.quality))
            shutil.rmtree(folder_of(self.scratch, best.way), ignore_errors=True)
            best = challenger
        self.tried.append(Tried(best.way, "chosen", None, best.timed, best.quality))
        # In the order in which they were to be tried.
        self.tried.sort(key=lambda way: self.ways.index(way.way))
        return best

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
            try:
                self._made[precision] = self.contests.make(precision, self.scratch / precision)
            except MoHDeployError as error:
                self._made[precision] = error
        found = self._made[precision]
        if isinstance(found, MoHDeployError):
            raise found
        return found


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
