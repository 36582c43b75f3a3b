"""What a served model runs its batches on: one runner, or a guard with several."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moh_deploy.runtime.base import Description, Runner
from moh_deploy.serving.metrics import Family
from moh_deploy.system.npz import Array

FIRST_RUNG = "kernels"
"""How the model as it is, on whatever kernels there are, is called as a rung of the ladder."""


@dataclass(frozen=True)
class Ran:
    """A batch that was run.

    Attributes:
        results: Outputs of the model, and those of the inner values that what ran has.
        rung: What ran.
        seconds: How long it took.
    """

    results: Mapping[str, Array]
    rung: str
    seconds: float


class BatchSource(Protocol):
    """Runs batches; several threads may ask at the same time."""

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
        requests: int = 1,
    ) -> Ran:
        """Run a batch whose inputs were checked.

        Args:
            inputs: Name to array, for every input.
            outputs: The outputs of the model.
            inner: Inner values that are wanted besides.
            requests: How many requests it was made of.

        Raises:
            BackendError: Nothing could run it, or not rightly.
        """

    def describe(self) -> Description:
        """Say what runs each layer."""

    def families(self) -> tuple[Family, ...]:
        """Return what it has counted so far."""

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(frozen=True)
class OneRunner:
    """The model as it is: what it computes is the answer."""

    runner: Runner

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
        requests: int = 1,
    ) -> Ran:
        """Run a batch; see `BatchSource.run`."""
        start = time.perf_counter()
        results = self.runner.run_returning(inputs, (*outputs, *inner))
        return Ran(results, FIRST_RUNG, time.perf_counter() - start)

    def describe(self) -> Description:
        """Say what runs each layer."""
        return self.runner.describe()

    def families(self) -> tuple[Family, ...]:
        """Return nothing: a runner counts nothing."""
        return ()

    def close(self) -> None:
        """Close the runner."""
        self.runner.close()
