"""The two ways in which a package is run: as it is to be judged, and as the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.runtime.runner import Kernels, Runner

Change = Callable[[onnx.GraphProto], object]


class Source(Protocol):
    """Opens a model, or a variant of it."""

    def open(self, extra_outputs: Sequence[str] = (), change: Change | None = None) -> Runner:
        """Load the model; see `open_session`."""


@dataclass(frozen=True)
class OrtSource:
    """A package in ONNX Runtime.

    Attributes:
        package: The package.
        kernels: What runs MoH nodes.
        optimize: Let ONNX Runtime rewrite the graph.
    """

    package: OnnxPackage
    kernels: Kernels = "auto"
    optimize: bool = True

    def open(self, extra_outputs: Sequence[str] = (), change: Change | None = None) -> Runner:
        return open_session(
            self.package,
            kernels=self.kernels,
            optimize=self.optimize,
            extra_outputs=extra_outputs,
            change=change,
        )


def function_bodies(package: OnnxPackage) -> OrtSource:
    """Return the reference: function bodies with optimisations off."""
    return OrtSource(package, "off", optimize=False)
