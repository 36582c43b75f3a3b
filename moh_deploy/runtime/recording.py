"""A runner that keeps what it returns, so that scores need no second run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class RecordingRunner(RunnerAround):
    """A runner that records its results.

    Attributes:
        runner: What runs.
        kept: Names of what is kept of its results; the rest is as large as the model's activations.
        step: Encloses a run, by its number from 0: it shows progress.
        results: What each run returned, in order.
    """

    runner: Runner
    kept: frozenset[str]
    step: Callable[[int], AbstractContextManager[None]]
    results: list[dict[str, Array]] = field(default_factory=list)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; see `Runner.run`."""
        with self.step(len(self.results)):
            found = self.runner.run(inputs)
        self.results.append({name: found[name] for name in self.kept & found.keys()})
        return found
