"""What a served model runs its batches on: one runner, or a guard with several."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from moh_deploy.package import MODEL_DATA_NAME, MODEL_NAME
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.serving.known_answer import require_known_answer
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
class OneModel:
    """The model as it is: what it computes is the answer.

    Attributes:
        runner: Runs batches.
        reading: Runs those of which inner values are wanted; None where `runner` does.
    """

    runner: Runner
    reading: Runner | None = None

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
        requests: int = 1,
    ) -> Ran:
        """Run a batch; see `BatchSource.run`."""
        runner = self.reading if inner and self.reading is not None else self.runner
        start = time.perf_counter()
        results = runner.run_returning(inputs, (*outputs, *inner))
        return Ran(results, FIRST_RUNG, time.perf_counter() - start)

    def describe(self) -> Description:
        """Say what runs each layer."""
        return self.runner.describe()

    def families(self) -> tuple[Family, ...]:
        """Return nothing: a runner counts nothing."""
        return ()

    def close(self) -> None:
        """Close the runners."""
        self.runner.close()
        if self.reading is not None:
            self.reading.close()


MOST_BYTES_TWICE = 32 * 2**20
"""A model of at most so many bytes is opened twice where inner values are wanted of some runs."""


def open_model(model: Deployed, inner: Sequence[str], way: Variant) -> OneModel:
    """Open a model whose inner values are wanted of some runs, and try its known answer.

    An output that is declared costs a run some 2 500 instructions, fetched or not: more than a
    hundredth of a model so small that it is hardly more memory to hold it twice.

    Args:
        model: What is served.
        inner: The inner values.
        way: How it is opened.

    Raises:
        BackendError: The runtime is not there, or refuses the model.
        ValidationError: It answers a recorded run wrongly.
    """
    gates = () if model.is_compiled else model.made_from(None).gate_names
    returned = tuple(dict.fromkeys((*inner, *gates)))
    if not returned or _bytes_of(model) > MOST_BYTES_TWICE:
        runner = model.open(way.returning(returned))
        require_known_answer(model, way, runner)
        return OneModel(runner)
    runner, reading = model.open(way), model.open(way.returning(returned))
    require_known_answer(model, way, runner, reading)
    if inner:
        return OneModel(runner, reading)
    reading.close()
    return OneModel(runner)


def _bytes_of(model: Deployed) -> int:
    files = (model.root / name for name in (MODEL_NAME, MODEL_DATA_NAME))
    return sum(file.stat().st_size for file in files if file.is_file())


@dataclass(frozen=True)
class ServedRun:
    """A run that was made to answer a batch, for observers.

    Attributes:
        inputs: The batch.
        dims: The sizes of its dynamic dimensions.
        results: Its outputs, and the inner values that the observers wanted of this run, of what
            the rung has: another package has none.
        sizes: Samples of each request in the batch, in order; a batch that cannot be told apart is
            one request.
        seconds: How long the run took.
        rung: What ran.
    """

    inputs: Mapping[str, Array]
    dims: Mapping[str, int]
    results: Mapping[str, Array]
    sizes: tuple[int, ...]
    seconds: float
    rung: str


class Observer(Protocol):
    """Sees the runs of a served model, from several threads. What it raises is a bug."""

    inner: tuple[str, ...]
    """Names of the inner values that it may want."""

    def wanted(self, dims: Mapping[str, int]) -> tuple[str, ...]:
        """Return the inner values that it wants of the run that begins, of these sizes."""

    def saw(self, run: ServedRun) -> None:
        """Take note of a run whose answer is right as far as can be told."""

    def families(self) -> tuple[Family, ...]:
        """Return what it has counted so far."""

    def close(self) -> None:
        """Give back what it holds."""
