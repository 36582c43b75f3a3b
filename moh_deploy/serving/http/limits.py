"""Limits of an HTTP server: sizes of requests, and how long clients may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moh_deploy.serving.http.refusal import Refusal

MIB = 2**20


@dataclass(frozen=True)
class HttpLimits:
    """Limits that keep a server alive whatever clients send.

    Attributes:
        max_body_bytes: The most bytes of a request's body; 413 beyond.
        max_json_bytes: The most bytes of its JSON, which takes thirty times as much in memory while
            it is read; 413 beyond.
        max_held_bytes: The most bytes of all bodies that are received, answered or sent; half of
            them from one address; 503 beyond.
        max_waiting: The most requests that wait for an instance; 503 beyond.
        read_timeout_s: How long a request's headers, and then its body, may take to arrive: 408
            beyond; and how long a client may read nothing, or next to nothing, of its answer
            before it is cut off.
        request_timeout_s: How long a request that has arrived may wait for its answer; 504 beyond.
        shutdown_timeout_s: How long requests that have arrived are still answered when the server
            is told to stop.
        longest: Dynamic dimension to its largest size in a request; 400 beyond. A long sequence
            is a small body, but much work.
    """

    max_body_bytes: int = 64 * MIB
    max_json_bytes: int = 4 * MIB
    max_held_bytes: int = 512 * MIB
    max_waiting: int = 256
    read_timeout_s: float = 20.0
    request_timeout_s: float = 60.0
    shutdown_timeout_s: float = 30.0
    longest: dict[str, int] = field(default_factory=dict)

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Refuse sizes of dynamic dimensions that are too large.

        Raises:
            Refusal: Naming the dimension and its limit.
        """
        for name, most in self.longest.items():
            if sizes.get(name, 0) > most:
                raise Refusal(f"dimension '{name}' is {sizes[name]}, expected at most {most}.")
