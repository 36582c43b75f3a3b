"""Wrap a runner that was made with Polygraphy as a model of ours, without importing Polygraphy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.runtime.base import AS_IT_IS, Description, Model, Runner, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.system.npz import Array


class InferenceRunner(Protocol):
    """Polygraphy's `BaseRunner`, as far as it is used here."""

    name: str

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def get_input_metadata(self, use_numpy_dtypes: bool) -> Mapping[str, Any]: ...

    def infer(self, feed_dict: Mapping[str, Array]) -> Mapping[str, Array]: ...


@dataclass(frozen=True)
class PolygraphyModel(Model):
    """A runner that was made with Polygraphy, as a model that can be opened."""

    runner: InferenceRunner

    @property
    def name(self) -> str:
        return f"Polygraphy runner {self.runner.name}"

    def open(self, variant: Variant = AS_IT_IS) -> _Activated:
        """Activate it; it runs in no other way than its own."""
        self.runner.activate()
        return _Activated(self.runner)


@dataclass(frozen=True)
class _Activated(Runner):
    runner: InferenceRunner
    # Polygraphy tells the outputs only with a run.
    outputs: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:  # type: ignore[override]
        metadata = self.runner.get_input_metadata(use_numpy_dtypes=False)
        return tuple(
            TensorInfo(name, str(item.dtype), tuple(map(str, item.shape or ())))
            for name, item in metadata.items()
        )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # Polygraphy keeps outputs in memory that it uses again.
        found = self.runner.infer(feed_dict=inputs)
        return {name: np.array(value) for name, value in found.items()}

    def describe(self) -> Description:
        return Description("Polygraphy", KernelUse(None, "Polygraphy knows of none", None))

    def close(self) -> None:
        self.runner.deactivate()
