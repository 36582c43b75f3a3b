"""Series for promtool, made of metrics that were recorded of a real server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GAUGES = re.compile(
    r"moh_(mode|hung_runs|reference_info|drift_ratio|drift_recent_alarms|queue_\w+_requests)"
    r"|nv_inference_pending_request_count"
)
BEAT = "moh_heartbeat_seconds"
GONE, SILENT = "gone", "silent"
"""Parts of a timeline: the server shows nothing; the process of its model is dead."""


@dataclass(frozen=True)
class Scrape:
    """What a server showed: when, and series to value."""

    seconds: float
    values: Mapping[str, float]


def scrapes_in(text: str) -> dict[str, Scrape]:
    """Read a recorded file: name to scrape, in order."""
    found: dict[str, Scrape] = {}
    values: dict[str, float] = {}
    for part in re.split(r"^# ", text, flags=re.MULTILINE)[1:]:
        heading, *lines = part.splitlines()
        name, seconds = heading.split(" at ")
        pairs = (line.rsplit(" ", 1) for line in lines)
        values = values | {key: float(value) for key, value in pairs}
        found[name] = Scrape(float(seconds), values)
    return found


def series_of(
    scrapes: Mapping[str, Scrape],
    timeline: Sequence[tuple[str, int]],
    *,
    step: int = 1,
    frozen: str = "",
    gauges: Mapping[str, float] | None = None,
) -> list[dict[str, str]]:
    """Return input series of promtool: each minute of a part of the timeline is like its scrape.

    Counters grow each minute by what they grew from the scrape before; gauges are as in it.

    Args:
        scrapes: As `scrapes_in` returns them.
        timeline: Name of a scrape, or `gone`, and minutes.
        step: Minutes between two samples.
        frozen: A counter that does not grow.
        gauges: Name of a gauge to another value.
    """
    names = list(scrapes)
    keys = dict.fromkeys(key for scrape in scrapes.values() for key in scrape.values)
    samples: dict[str, list[str]] = {key: [] for key in keys}
    reached = dict(scrapes["start"].values)
    elapsed = 0
    for name, minutes in timeline:
        for begun in range(0, minutes, step):
            for key in keys:
                samples[key].append("stale" if name == GONE and not begun else "_")
            if name == GONE:
                continue
            now, before = scrapes[name], scrapes[names[max(0, names.index(name) - 1)]]
            for key, value in now.values.items():
                metric = key.partition("{")[0]
                if metric == BEAT:
                    # A process that is dead beat last when this part of the timeline began.
                    minute = elapsed if name == SILENT else elapsed + begun
                    reached[key] = 60 * minute + value - now.seconds
                elif GAUGES.fullmatch(metric):
                    reached[key] = (gauges or {}).get(metric, value)
                elif metric != frozen:
                    grown = value - before.values.get(key, 0.0)
                    reached[key] = reached.get(key, 0.0) + step * grown
                samples[key][-1] = repr(reached.get(key, 0.0))
        elapsed += minutes
    return [{"series": key, "values": " ".join(values)} for key, values in samples.items()]
