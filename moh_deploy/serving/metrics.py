"""What a serving process counts, for whichever exporter shows it.

Names follow the conventions of Prometheus: one prefix, base units, counters end in `_total`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

FamilyKind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Exemplar:
    """One observation of a histogram, and the request that it is of.

    Attributes:
        trace_id: Of the request, 32 hexadecimal digits.
        value: What was observed.
        seconds: When, in seconds since 1970.
    """

    trace_id: str
    value: float
    seconds: float


@dataclass(frozen=True)
class Series:
    """One series of a family.

    Attributes:
        labels: Label to value: `{"layer": "blocks.0.attn"}`.
        value: The count or the reading; of a histogram the sum of what was observed.
        buckets: Of a histogram, upper edge to how many observations are at most that, with `inf`
            last; empty for anything else.
        exemplars: Of a histogram, upper edge to the last observation in that bucket whose request
            had a trace id.
    """

    labels: Mapping[str, str]
    value: float
    buckets: Mapping[float, int] = field(default_factory=dict)
    exemplars: Mapping[float, Exemplar] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A metric: all series of one name.

    Attributes:
        name: With `_total` for a counter: `moh_routed_tokens_total`.
        help: What it counts, in a sentence.
        kind: `counter`, `gauge` or `histogram`.
        samples: Its series, each with other labels.
    """

    name: str
    help: str
    kind: FamilyKind
    samples: tuple[Series, ...]

    @property
    def unit(self) -> str:
        """The base unit that the name ends in; empty for plain counts."""
        word = self.name.removesuffix("_total").rpartition("_")[2]
        return word if word in ("seconds", "bytes", "ratio") else ""

    def flat(self) -> Iterator[tuple[str, Mapping[str, str], float, Exemplar | None]]:
        """Yield name, labels, value and exemplar of each series as Prometheus has them: those of a
        histogram are its buckets, its sum and its count."""
        for series in self.samples:
            if self.kind != "histogram":
                yield self.name, series.labels, series.value, None
                continue
            for edge, count in series.buckets.items():
                labels = {**series.labels, "le": edge_text(edge)}
                yield f"{self.name}_bucket", labels, count, series.exemplars.get(edge)
            yield f"{self.name}_count", series.labels, series.buckets[math.inf], None
            yield f"{self.name}_sum", series.labels, series.value, None


def edge_text(edge: float) -> str:
    """Return the upper edge of a bucket as the label `le` has it; it reads back as it was."""
    return "+Inf" if edge == math.inf else repr(float(edge))
