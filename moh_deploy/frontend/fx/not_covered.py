"""The refusal to rewrite one layer."""

from __future__ import annotations


class NotCoveredError(Exception):
    """An attention that no op can express; the message is what the user reads."""
