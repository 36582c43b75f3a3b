"""Collect what will not be built, and why, so that all of it is said at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.errors import BackendError


@dataclass(frozen=True)
class Rejection:
    """One reason why a package cannot be built, and the next step.

    Attributes:
        layer: Name of the node.
        value: What it has: `head_dim is 300`.
        limit: What is taken: `at most 256`.
        what_to_do: The next step.
    """

    layer: str
    value: str
    limit: str
    what_to_do: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.value}; expected {self.limit}. {self.what_to_do}"


def refusal(rejections: Sequence[Rejection], *, title: str) -> BackendError:
    """Return the error that says all of them.

    Args:
        rejections: At least one.
        title: What would have built it.
    """
    # All reasons in one error: each attempt costs minutes.
    lines = "".join(f"\n  - {rejection}" for rejection in rejections)
    return BackendError(
        f"{title} cannot build this package, for {rejection_reasons(rejections)}:{lines}"
    )


def rejection_reasons(rejections: Sequence[Rejection]) -> str:
    """Return `1 reason` or `3 reasons`."""
    return f"{len(rejections)} reason{'s' if len(rejections) > 1 else ''}"
