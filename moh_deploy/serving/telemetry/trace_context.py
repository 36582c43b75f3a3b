"""Read which trace a request belongs to. Source: W3C Trace Context, Level 1, `traceparent`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

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
