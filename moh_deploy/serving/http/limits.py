"""Limits of an HTTP server: sizes of requests, and how long clients may take."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moh_deploy.errors import MoHDeployError

# The answer to a request that gets no tensors: an HTTP status and a sentence.


class Refusal(MoHDeployError):
    """A request is not answered with tensors.

    Args:
        message: What was wrong: what, got, expected.
        status: Of HTTP; 400 says that the request itself is at fault.
        retry_after_s: When it may be sent again; None where that would change nothing.
        closes_connection: More of the request may come, and is not read.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        retry_after_s: int | None = None,
        closes_connection: bool = False,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after_s = retry_after_s
        self.closes_connection = closes_connection

    def __str__(self) -> str:
        """Return the message with the next step behind it, in one line."""
        return self.message if self.hint is None else f"{self.message} {self.hint}"


MIB = 2**20


@dataclass(frozen=True)
class HttpLimits:
    """Limits that keep a server alive whatever clients send."""

    max_body_bytes: int = 64 * MIB  # the most bytes of a request's body; 413 beyond
    # The most bytes of its JSON, which takes thirty times as much in memory while it is read; 413
    # beyond.
    max_json_bytes: int = 4 * MIB
    # The most bytes of all bodies that are received, answered or sent; half of them from one
    # address; 503 beyond.
    max_held_bytes: int = 512 * MIB
    max_waiting: int = 256  # the most requests that wait for an instance; 503 beyond
    # How long a request's headers, and then its body, may take to arrive: 408 beyond; and how long
    # a client may read nothing, or next to nothing, of its answer before it is cut off.
    read_timeout_s: float = 20.0
    # How long a request that has arrived may wait for its answer; 504 beyond.
    request_timeout_s: float = 60.0
    # How long requests that have arrived are still answered when the server is told to stop.
    shutdown_timeout_s: float = 30.0
    # Dynamic dimension to its largest size in a request; 400 beyond. A long sequence is a small
    # body, but much work.
    longest: dict[str, int] = field(default_factory=dict)

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Refuse sizes of dynamic dimensions that are too large.

        Raises:
            Refusal: Naming the dimension and its limit.
        """
        for name, most in self.longest.items():
            if sizes.get(name, 0) > most:
                raise Refusal(f"dimension '{name}' is {sizes[name]}, expected at most {most}.")
