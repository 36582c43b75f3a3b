"""Find the runtime, the precision and the way of each layer that are fastest and still good.

Candidates are taken one after the other, each against the fastest so far.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from moh_deploy.errors import MoHDeployError
from moh_deploy.graph.write_choices import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune.contests import Best, MakePackage, ended_by, folder_of
from moh_deploy.perf.tune.tried import RuntimePrecision, Tried


class TakesCandidates(Protocol):
    """Lets a search ask of each candidate: `Contests` does it here, `ContestsApart` elsewhere."""

    @property
    def make(self) -> MakePackage:
        """What makes packages in other precisions."""

    def first(self, way: RuntimePrecision) -> Best:
        """See `Contests.first`."""

    def challenge(self, way: RuntimePrecision, made: OnnxPackage, best: Best) -> Best | Tried:
        """See `Contests.challenge`."""


@dataclass
class Search:
    """Searches among ways to run one float32 package.

    Attributes:
        base: The package, in float32.
        ways: What to try, the float32 package itself first.
        contests: What takes candidates.
        scratch: A directory for packages.
    """

    base: OnnxPackage
    ways: Sequence[RuntimePrecision]
    contests: TakesCandidates
    scratch: Path
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
        """Return the package in a precision, made once; what kept it from being made, likewise."""
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
