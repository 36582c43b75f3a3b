"""Wrap a runner that was made with Polygraphy as a model of ours, without importing Polygraphy."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from polygraphy import util
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from moh_deploy.package import TensorInfo
from moh_deploy.runtime.base import AS_IT_IS, Description, Model, Runner, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.system.npz import Array

# Our models as runners of Polygraphy's. Importing this imports Polygraphy.


class PolygraphyRunner(BaseRunner):  # type: ignore[misc]
    """A model that Polygraphy activates, runs and deactivates.

    Args:
        name: What results are called.
        model: The model.
        variant: The way in which it is opened.
    """

    def __init__(self, name: str, model: Model, variant: Variant) -> None:
        super().__init__(name=name)
        self._model, self._variant = model, variant

    def activate_impl(self) -> None:
        """Load the model."""
        self._loaded = self._model.open(self._variant)

    def deactivate_impl(self) -> None:
        """Give its memory back."""
        self._loaded.close()
        del self._loaded

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Return names, dtypes and shapes; a dynamic size is None."""
        metadata = TensorMetadata()
        for info in self._loaded.inputs:
            shape = [size if isinstance(size, int) else None for size in info.shape]
            metadata.add(info.name, dtype=info.dtype, shape=shape)
        return metadata

    def infer_impl(self, feed_dict: Mapping[str, object]) -> OrderedDict[str, Array]:
        """Run the model once, on arrays or tensors.

        Raises:
            ConfigError: An input is of a wrong dtype or shape.
            BackendError: The runtime failed.
        """
        # Copying tensors to the host is the caller's affair, and not part of the time of the model.
        inputs = {name: util.array.to_numpy(value) for name, value in feed_dict.items()}
        start = time.perf_counter()
        outputs = self._loaded.run(inputs)
        self.inference_time = time.perf_counter() - start
        return OrderedDict(outputs)


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
