"""What a search for the fastest package tried, and how each candidate ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moh_deploy.config.runtimes import RUNTIMES, Runtime
from moh_deploy.perf.timing import Ratio
from moh_deploy.perf.tune.quality import Quality
from moh_deploy.report.json import in_json

Ending = Literal["chosen", "too slow", "not good", "could not run"]

FLOAT32 = "float32"


@dataclass(frozen=True)
class RuntimePrecision:
    """A runtime and a precision: one candidate of a search.

    Attributes:
        runtime: What runs it.
        precision: A name of `LOWER_PRECISIONS`, or `float32`.
    """

    runtime: Runtime
    precision: str

    @property
    @in_json()
    def name(self) -> str:
        """What reports call it: `int8 in ONNX Runtime`."""
        return f"{self.precision} in {RUNTIMES[self.runtime]}"


@dataclass(frozen=True)
class Timed:
    """The time of a candidate beside that of another, in turns.

    Attributes:
        rival: The other one, the fastest at that time.
        ms: Median of a run; of several inputs, as they weigh.
        rival_ms: The rival's, in the same turns.
        ratio: Its time over the rival's.
    """

    rival: str
    ms: float
    rival_ms: float
    ratio: Ratio

    def inverse(self, name: str) -> Timed:
        """Return the rival's time beside this candidate's, of this name."""
        ratio = self.ratio
        turned = Ratio(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
        return Timed(name, self.rival_ms, self.ms, turned)

    def sentence(self) -> str:
        """Return `1.310x the time of int8 in ONNX Runtime (95 %: 1.280x to 1.350x)`."""
        ratio = self.ratio
        interval = f"95 %: {ratio.low:.3f}x to {ratio.high:.3f}x"
        return f"{ratio.value:.3f}x the time of {self.rival} ({interval})"


@dataclass(frozen=True)
class Tried:
    """One candidate, and how it ended.

    Attributes:
        way: The candidate.
        ending: `chosen`, or why it was not.
        reason: That in a sentence; None of what was chosen.
        timed: Its last measurement; None if it was not timed against another.
        quality: The last look at its samples; None if there was none.
    """

    way: RuntimePrecision
    ending: Ending
    reason: str | None = None
    timed: Timed | None = None
    quality: Quality | None = None
