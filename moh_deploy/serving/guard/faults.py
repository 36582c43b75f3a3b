"""Faults that a drill plants in the first fallback level of a running server.

They exist only in a server that was started with `drill` allowed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.serving.guard.answer_check import is_float
from moh_deploy.system.npz import Array

Fault = Literal["nan", "gates", "slow", "crash", "drift", "missing-library", "wrong"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

# Faults whose answers look right when they are given.
UNSEEN: frozenset[Fault] = frozenset(("wrong",))


@dataclass
class Faults:
    """The faults that are planted now, and the names of the tensors that they change."""

    outputs: Sequence[str]
    gates: Sequence[str]
    slow_s: float = 0.25  # how much longer a slow run takes
    planted: frozenset[Fault] = frozenset()


@dataclass
class FaultyRunner(RunnerAround):
    """A runner with planted faults."""

    runner: Runner
    faults: Faults

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; see `Runner.run`."""
        return self.run_returning(inputs, self.outputs)

    def run_returning(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """Run the model once; see `Runner.run_returning`."""
        faults, planted = self.faults, self.faults.planted
        if "slow" in planted:
            time.sleep(faults.slow_s)
        if "crash" in planted:
            raise BackendError("a kernel failed, as a drill has planted it.")
        results = dict(self.runner.run_returning(inputs, outputs))
        for name, array in results.items() if planted else ():
            if not is_float(array):
                continue
            is_output = name in faults.outputs
            if "wrong" in planted and is_output:
                # Finite, and far outside of every tolerance.
                array = (array * np.asarray(1.05, array.dtype)).astype(array.dtype)
            if ("nan" in planted and is_output) or ("gates" in planted and name in faults.gates):
                array = np.array(array)
                if array.size:  # the last element of each sample
                    array.reshape(len(array) if array.ndim else 1, -1)[:, -1] = np.nan
            results[name] = array
        return results
