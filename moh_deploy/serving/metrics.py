"""Count the events of a serving process, for any exporter.

Names follow the conventions of Prometheus: one prefix, base units, counters end in `_total`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from moh_deploy.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


FamilyKind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Exemplar:
    """One observation of a histogram, and the request that it is of."""

    trace_id: str  # of the request, 32 hexadecimal digits
    value: float
    seconds: float  # when, in seconds since 1970


@dataclass(frozen=True)
class Series:
    """One series of a family."""

    labels: Mapping[str, str]  # label to value: `{"layer": "blocks.0.attn"}`
    value: float  # the count or the reading; of a histogram the sum of what was observed
    # Of a histogram, upper edge to how many observations are at most that, with `inf` last; empty
    # for anything else.
    buckets: Mapping[float, int] = field(default_factory=dict)
    # Of a histogram, upper edge to the last observation in that bucket whose request had a trace
    # id.
    exemplars: Mapping[float, Exemplar] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A metric: all series of one name."""

    name: str  # with `_total` for a counter: `moh_routed_tokens_total`
    help: str  # what it counts, in a sentence
    kind: FamilyKind  # `counter`, `gauge` or `histogram`
    samples: tuple[Series, ...]  # its series, each with other labels

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


def single(name: str, kind: FamilyKind, value: float, help: str) -> Family:
    """Return a family of one series without labels."""
    return Family(name, help, kind, (Series({}, value),))


def edge_text(edge: float) -> str:
    """Return the upper edge of a bucket as the label `le` has it; it reads back as it was."""
    return "+Inf" if edge == math.inf else repr(float(edge))


# Write metrics for Prometheus, in its text format or in OpenMetrics, and read the text format.
#
# `prometheus_client` does both: it knows what has to be escaped, and how numbers are written.

# Read which trace a request belongs to. Source: W3C Trace Context, Level 1, `traceparent`.

_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<id>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


@dataclass(frozen=True)
class Trace:
    """The trace of a request."""

    trace_id: str  # 32 hexadecimal digits
    is_sampled: bool  # the client records it; of others a tracing system knows nothing

    @classmethod
    def of(cls, headers: Sequence[str]) -> Trace | None:
        """Return the trace that a request names; None where there is no valid one.

        Args:
            headers: The values of all its headers `traceparent`: two contradict each other.
        """
        found = _TRACEPARENT.fullmatch(headers[0]) if len(headers) == 1 else None
        # Later versions may have more fields behind the four of today.
        if found is None or (found["version"] == "00" and found["more"] is not None):
            return None
        return cls(found["id"], is_sampled=bool(int(found["flags"], 16) & 1))


OPENMETRICS = "application/openmetrics-text"
# Of the text format.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(families: Sequence[Family], accept: str = "") -> tuple[str, str]:
    """Return what `/metrics` answers: text and content type.

    Args:
        accept: Header of the scraper. OpenMetrics, which alone has exemplars, is for those that
            ask for it.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.openmetrics import exposition as openmetrics

    # A registry of its own: what else counts in this process is no concern of ours.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    accepted = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    if OPENMETRICS in accepted:
        text = openmetrics.generate_latest(registry)
        return text.decode(), openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(registry).decode(), CONTENT_TYPE


def parse_text(text: str, source: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Read a text, such as a server's `/metrics`.

    Args:
        source: Where it is from, for messages.

    Returns:
        Name to series, each with its labels: a histogram has those of `_bucket`, `_sum`, `_count`.

    Raises:
        BackendError: prometheus_client is not installed.
        ConfigError: It is of another format.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise BackendError(
            "metrics of Prometheus need the package prometheus_client.",
            hint="pip install 'moh-deploy[serve]'",
        ) from error
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"{source} does not answer in the text format of Prometheus: {str(error)[:200]}."
        ) from error
    return found


@dataclass(eq=False)
class _Collected:
    """Families as a collector has them."""

    families: Sequence[Family]

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import Metric
        from prometheus_client.samples import Exemplar

        for family in self.families:
            # The format wants `# TYPE` of a counter with its suffix, which the client adds.
            name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
            metric = Metric(name, family.help, family.kind, family.unit)
            for series, labels, value, last in family.flat():
                exemplar = None
                if last is not None:
                    exemplar = Exemplar({"trace_id": last.trace_id}, last.value, last.seconds)
                metric.add_sample(series, dict(labels), value, exemplar=exemplar)
            yield metric
