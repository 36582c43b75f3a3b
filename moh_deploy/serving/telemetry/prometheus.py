"""Write metrics in the text format that Prometheus scrapes, and read it.

`prometheus_client` does both: it knows what has to be escaped, and how numbers are written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.serving.metrics import Family, edge_text

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of a response that holds the text."""


def prometheus_text(families: Sequence[Family]) -> str:
    """Return the text of `/metrics`.

    Raises:
        BackendError: prometheus_client is not installed.
    """
    _require()
    from prometheus_client import CollectorRegistry, generate_latest

    # A registry of its own: what else counts in this process is no concern of ours.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    return generate_latest(registry).decode()


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
    _require()
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for one in family.samples:
                found.setdefault(one.name, []).append((dict(one.labels), one.value))
    except (ValueError, KeyError, IndexError) as error:
        raise ConfigError(
            f"{source} does not answer in the text format of Prometheus: {error}."
        ) from error
    return found


class _Collected:
    """Families as a collector has them."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import Metric

        for family in self._families:
            # The format wants `# TYPE` of a counter with its suffix, which the client adds.
            name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
            metric = Metric(name, family.help, family.kind)
            for one in family.samples:
                labels = dict(one.labels)
                if family.kind != "histogram":
                    metric.add_sample(family.name, labels, one.value)
                    continue
                for edge, count in one.buckets.items():
                    metric.add_sample(f"{name}_bucket", {**labels, "le": edge_text(edge)}, count)
                metric.add_sample(f"{name}_count", labels, one.buckets[math.inf])
                metric.add_sample(f"{name}_sum", labels, one.value)
            yield metric


def _require() -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "metrics of Prometheus need the package prometheus_client.",
            hint="pip install 'moh-deploy[serve]'",
        ) from error
