"""Counts of a guard, and the metrics that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from moh_deploy.serving.guard.breaker import State
from moh_deploy.serving.guard.ladder_state import TripReason
from moh_deploy.serving.metrics import Family, Series

REFUSALS = ("non-finite outputs", "non-finite gates", "kernel error", "no rung")
"""Why requests are refused. Each is shown as 0 from the beginning: an alert sees what grows, and
would miss the first."""


@dataclass(frozen=True)
class GuardCounts:
    """Counts of a guard up to a moment.

    Attributes:
        states: Each rung to its state.
        mode: The rung that serves.
        transitions: Changes of the rung that serves, by both and the reason.
        fallbacks: Requests that another rung than the first answered, by reason and rung.
        refused: Requests that no rung could answer rightly, by reason.
        compared: Answers that were computed once more beside, by kind and outcome.
    """

    states: Mapping[str, State]
    mode: str
    transitions: Mapping[tuple[str, str, TripReason], int]
    fallbacks: Mapping[tuple[str, str], int]
    refused: Mapping[str, int]
    compared: Mapping[tuple[str, str], int]

    def families(self) -> tuple[Family, ...]:
        """Return them as metrics."""
        return (
            _family(
                "moh_mode",
                "1 for the rung of the ladder that serves.",
                "gauge",
                {(name,): int(name == self.mode) for name in self.states},
                ("rung",),
            ),
            _family(
                "moh_rung_open",
                "1 for a rung that does not serve: 0.5 while it is probed.",
                "gauge",
                {(name,): _OPENNESS[state] for name, state in self.states.items()},
                ("rung",),
            ),
            _family(
                "moh_guard_transitions_total",
                "Changes of the rung that serves.",
                "counter",
                self.transitions,
                ("from", "to", "reason"),
            ),
            _family(
                "moh_fallback_requests_total",
                "Requests that another rung than the first answered.",
                "counter",
                self.fallbacks,
                ("reason", "rung"),
            ),
            _family(
                "moh_refused_requests_total",
                "Requests that no rung could answer rightly, so that they got an error.",
                "counter",
                {(reason,): number for reason, number in self.refused.items()},
                ("reason",),
            ),
            _family(
                "moh_guard_comparisons_total",
                "Answers that were computed once more beside, and what came of it.",
                "counter",
                self.compared,
                ("kind", "outcome"),
            ),
        )


_Key = TypeVar("_Key", bound=tuple[str, ...])
_OPENNESS = {"closed": 0.0, "half-open": 0.5, "open": 1.0}


def _family(
    name: str,
    help_text: str,
    kind: str,
    values: Mapping[_Key, float],
    labels: tuple[str, ...],
) -> Family:
    series = tuple(
        Series(dict(zip(labels, key, strict=True)), value) for key, value in values.items()
    )
    return Family(name, help_text, kind, series)  # type: ignore[arg-type]
