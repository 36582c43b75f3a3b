"""The two ways in which a package is run: as it is to be judged, and as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import AS_IT_IS, FUNCTION_BODIES, GraphEdit, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner


@dataclass(frozen=True)
class Source:
    """Opens a package in one way, or a variant of it.

    Attributes:
        package: The package.
        variant: The way.
    """

    package: OnnxPackage
    variant: Variant = AS_IT_IS

    def open(self, extra_outputs: Sequence[str] = (), edit: GraphEdit | None = None) -> Runner:
        """Load the model; see `Variant`."""
        edited = self.variant if edit is None else self.variant.edited(edit)
        return open_runner(self.package, edited.returning(extra_outputs))


def body_source(package: OnnxPackage) -> Source:
    """Return the reference: function bodies with optimisations off."""
    return Source(package, FUNCTION_BODIES)
