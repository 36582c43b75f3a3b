"""The answer to a request that gets no tensors: an HTTP status and a sentence."""

from __future__ import annotations

from moh_deploy.errors import MoHDeployError


class Refusal(MoHDeployError):
    """A request is not answered with tensors.

    Args:
        message: What was wrong: what, got, expected.
        status: Of HTTP; 400 says that the request itself is at fault.
        retry_after_s: When it may be sent again; None where that would change nothing.
        closes_connection: More of the request may come, and is not read.
        hint: The next step for the client.
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
