"""Searches whose candidates end their process, for tests of processes apart."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from moh_deploy.errors import ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune.contests import Best, Contests
from moh_deploy.perf.tune.quality import Flips, Quality
from moh_deploy.perf.tune.report import RuntimePrecision, Tried
from moh_deploy.system.progress import Progress
from tests.handmade_package import write_package

GOOD = Quality(1, Flips(0, 1), (), ())


@dataclass(frozen=True)
class Ending:
    """A search of a package whose candidates end as their precision says.

    Attributes:
        root: The package.
        first: How the float32 package ends.
    """

    root: Path
    first: str = "well"

    def made(self, to: str, folder: Path, progress: Progress) -> OnnxPackage:
        """Return the package as it is, whatever it is to be in."""
        if to == "unmade":
            _end("signal 9")
        return write_package(self.root)

    @contextmanager
    def contests(self, scratch: Path, progress: Progress) -> Iterator[Contests]:
        """Open what ends."""
        yield cast(Contests, _Ends(self, progress))


@dataclass(frozen=True)
class _Ends:
    task: Ending
    progress: Progress

    def first(self, way: RuntimePrecision) -> Best:
        if self.task.first != "well":
            _end(self.task.first)
        return Best(way, write_package(self.task.root), GOOD, ({},))

    def challenge(self, way: RuntimePrecision, made: OnnxPackage, best: Best) -> Best | Tried:
        with self.progress.step(f"timing {way.name}"):
            if way.precision != "slow":
                _end(way.precision)
        return Tried(way, "too slow", f"slower than {best.way.name}")


def _end(how: str) -> NoReturn:
    kind, _, number = how.partition(" ")
    if kind == "signal":
        os.kill(os.getpid(), int(number))
        signal.pause()
    if kind == "status":
        os._exit(int(number))
    if kind == "memory":
        raise MemoryError
    if kind == "refused":
        raise ValidationError("it is not equal.")
    raise ZeroDivisionError("a fault of ours")
