"""What a serving process counts, for whichever exporter shows it.

Names follow the conventions of Prometheus: one prefix, base units, counters end in `_total`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FamilyKind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Series:
    """One series of a family.

    Attributes:
        labels: Label to value: `{"layer": "blocks.0.attn"}`.
        value: The count or the reading; of a histogram the sum of what was observed.
        buckets: Of a histogram, upper edge to how many observations are at most that, with `inf`
            last; empty for anything else.
    """

    labels: Mapping[str, str]
    value: float
    buckets: Mapping[float, int] = field(default_factory=dict)


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


def edge_text(edge: float) -> str:
    """Return the upper edge of a bucket as the label `le` has it; it reads back as it was."""
    return "+Inf" if edge == math.inf else repr(float(edge))
