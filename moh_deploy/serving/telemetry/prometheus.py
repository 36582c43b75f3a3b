"""Write metrics for Prometheus, in its text format or in OpenMetrics, and read the text format.

`prometheus_client` does both: it knows what has to be escaped, and how numbers are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.serving.metrics import Family

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


# Read which trace a request belongs to. Source: W3C Trace Context, Level 1, `traceparent`.

_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<id>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?",
)


@dataclass(frozen=True)
class Trace:
    """The trace of a request.

    Attributes:
        trace_id: 32 hexadecimal digits.
        is_sampled: The client records it; of others a tracing system knows nothing.
    """

    trace_id: str
    is_sampled: bool

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
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the text format."""


def exposition(families: Sequence[Family], accept: str = "") -> tuple[str, str]:
    """Return what `/metrics` answers: text and content type.

    Args:
        families: The metrics.
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
        text = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
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
            f"{source} does not answer in the text format of Prometheus: {error}."
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
