"""What a run reached, in numbers, and by how much each kind of number may move by itself."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

# What a baseline file calls files and directories: the same from wherever they are named.

_NAMED = re.compile(r"(package|engine|ONNX model|original model|expected outputs in) (.+)")


def path_key(named: Path | str, file: Path) -> str:
    """Return a path as seen from the directory of a baseline file.

    A checkout has both, wherever it lies. Where the two have nothing in common but the root it is
    absolute. Links are not followed: `releases/last` stays that, whatever it leads to.
    """
    path, folder = os.path.abspath(named), os.path.abspath(file.parent)
    try:
        common = os.path.commonpath([path, folder])
    except ValueError:  # on other drives
        return Path(path).as_posix()
    shown = path if common == Path(path).anchor else os.path.relpath(path, folder)
    return Path(shown).as_posix()


def reference_key(reference: str, file: Path) -> str:
    """Return the words of a report for a reference, with such paths in them."""
    found = _NAMED.fullmatch(reference)
    if found is None:
        return reference
    what, named = found.groups()
    parts = [path_key(part, file) if os.path.exists(part) else part for part in named.split(", ")]
    return f"{what} {', '.join(parts)}"


@dataclass(frozen=True)
class Figure:
    """A figure of a run."""

    group: str  # What it is of, such as `output 'logits'`
    name: str  # Which one, a key of `KINDS`
    value: float
    # The true one is above this, with 95 % certainty; `value` itself where it is no sample.
    low: float
    high: float
    grain: float = 0.0  # Differences up to this are rounding

    @classmethod
    def exact(cls, group: str, name: str, value: float, *, grain: float = 0.0) -> Figure:
        """Return a number that is no sample of others."""
        return cls(group, name, value, value, value, grain)

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.name


@dataclass(frozen=True)
class Slack:
    """By how much a figure may be worse: `factor` times, and `plus` more."""

    factor: float = 1.0
    plus: float = 0.0


@dataclass(frozen=True)
class Domain:
    """Which numbers a figure can be, both ends included."""

    least: float = 0.0
    most: float = math.inf
    whole: bool = False

    def holds(self, value: float) -> bool:
        """Say whether a figure can be this."""
        return self.least <= value <= self.most and (not self.whole or is_whole(value))

    @property
    def words(self) -> str:
        """Return `a whole number of at least 0`, or `a number from 0 to 1`."""
        number = "a whole number" if self.whole else "a number"
        if self.most == math.inf:
            return f"{number} of at least {self.least:g}"
        return f"{number} from {self.least:g} to {self.most:g}"


_ANY, _COUNT = Domain(least=-math.inf), Domain(whole=True)
_SHARE, _FLAG = Domain(most=1.0), Domain(most=1.0, whole=True)


@dataclass(frozen=True)
class FigureKind:
    """A kind of figure."""

    words: str  # What it is called in sentences
    better: Literal["lower", "higher"]
    slack: Slack  # By how much it may be worse, unless the file says otherwise
    of_machine: bool = False  # It says something of one machine and runtime only
    domain: Domain = Domain()

    @property
    def is_flag(self) -> bool:
        return self.domain == _FLAG

    def text(self, figure: Figure) -> str:
        """Return `1.05 (1.02 to 1.09)`, `160` or `yes`."""
        if self.is_flag:
            return "yes" if figure.value else "no"
        words = number_text(figure.value)
        if figure.low == figure.high:
            return words
        return f"{words} ({number_text(figure.low)} to {number_text(figure.high)})"

    def limit_text(self, limit: float) -> str:
        """Return `, allowed at most 1.1`; of a flag there is no more to say."""
        if self.is_flag:
            return ""
        side = "at most" if self.better == "lower" else "at least"
        return f", allowed {side} {number_text(limit)}"

    def limit(self, was: Figure, slack: Slack, grain: float) -> float:
        """Return what a figure may be at worst. A factor of 1.1 is a tenth of its size."""
        if self.better == "lower":
            return was.high + abs(was.high) * (slack.factor - 1) + slack.plus + grain
        return was.low - abs(was.low) * (1 - 1 / slack.factor) - slack.plus - grain

    def is_worse(self, now: Figure, was: Figure, slack: Slack) -> bool:
        """Say whether all of the interval is beyond the limit; NaN is."""
        limit = self.limit(was, slack, now.grain)
        return not (now.low <= limit if self.better == "lower" else now.high >= limit)

    def is_better(self, now: Figure, was: Figure, slack: Slack) -> bool:
        """Say whether the former would be worse than this, were it the other way round."""
        return self.is_worse(replace(was, grain=now.grain), now, slack)


KINDS: Mapping[str, FigureKind] = {
    # Counted: a smaller test must not pass for a better one.
    "vector_sets": FigureKind("vector sets", "higher", Slack(), domain=_COUNT),
    "elements": FigureKind("numbers compared", "higher", Slack(), domain=_COUNT),
    # Near-ties are left out, and another training has others.
    "decisions": FigureKind(
        "routing decisions compared", "higher", Slack(factor=1.05), domain=_COUNT
    ),
    # Another machine or version sums in another order; and 1 % of the tolerance, for errors next to
    # none.
    "max_abs_error": FigureKind("max abs error", "lower", Slack(factor=2.0)),
    # Rounding of another machine decides near-ties otherwise.
    "explained_flips": FigureKind(
        "explained flips", "lower", Slack(factor=1.5, plus=2), domain=_COUNT
    ),
    "agreement": FigureKind("agreement of decisions", "higher", Slack(plus=0.01), domain=_SHARE),
    # Counted, as above.
    "samples": FigureKind("samples scored", "higher", Slack(), domain=_COUNT),
    "labels": FigureKind("labels scored", "higher", Slack(), domain=_COUNT),
    # Another training scores some samples otherwise.
    "score": FigureKind("score", "higher", Slack(factor=1.01), domain=_ANY),
    "loss": FigureKind("score, where less is better", "lower", Slack(factor=1.01), domain=_ANY),
    # Read from the package, and from the runtime.
    "replaced": FigureKind("replaced by an operator", "higher", Slack(), domain=_FLAG),
    "on_kernel": FigureKind("on a kernel", "higher", Slack(), domain=_FLAG),
    # Measured: worse if the 95 % intervals are further apart, in 0 of 380 pairs of runs of one
    # package on a busy machine (2 with 1.05).
    "ratio": FigureKind("time as a share of the baseline's", "lower", Slack(factor=1.1)),
    # Counted; which heads are open differs from training to training.
    "computed_share": FigureKind(
        "computed share of the dense rows", "lower", Slack(plus=0.01), domain=_SHARE
    ),
    # Others on the machine move it, and there is no interval.
    "p50_ms": FigureKind("p50 in ms", "lower", Slack(factor=1.5), of_machine=True),
    # Allocators, and Python itself.
    "peak_memory_bytes": FigureKind(
        "peak memory in bytes", "lower", Slack(factor=1.1), of_machine=True, domain=_COUNT
    ),
}
"""Kinds of figures, each with a comment on why it may be worse by so much."""


def number_text(value: float) -> str:
    """Return a number to four digits, whole ones as they are."""
    return f"{value:.0f}" if is_whole(value) else f"{value:.4g}"


def is_whole(value: float) -> bool:
    """Say whether this is a whole number that a float holds exactly."""
    return abs(value) < 2**53 and float(value).is_integer()
