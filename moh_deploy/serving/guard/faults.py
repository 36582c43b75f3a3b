"""Faults that a drill plants in the first rung of a running server, to see what the guard does.

They exist only in a server that was started with `drill` allowed: without, no rung asks for any.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.runtime.base import Runner, RunnerAround
from moh_deploy.system.npz import Array

Fault = Literal["nan", "gates", "slow", "crash", "drift", "missing-library", "wrong"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

UNSEEN: frozenset[Fault] = frozenset(("wrong",))
"""Those whose answers nothing tells from right ones while they are given."""


class Faults:
    """The faults that are planted now. A server that was not started for a drill has none.

    Attributes:
        slow_s: How much longer a slow run takes.
        planted: What is planted.
    """

    def __init__(self, slow_s: float = 0.25) -> None:
        self.slow_s = slow_s
        self.planted: frozenset[Fault] = frozenset()

    def before_run(self) -> None:
        """Fail, or wait, as the planted faults do.

        Raises:
            BackendError: A crash is planted.
        """
        if "slow" in self.planted:
            time.sleep(self.slow_s)
        if "crash" in self.planted:
            raise BackendError("a kernel failed, as a drill has planted it.")

    def after_run(
        self, results: dict[str, Array], outputs: tuple[str, ...], gates: tuple[str, ...]
    ) -> dict[str, Array]:
        """Return the results of a run as the planted faults leave them."""
        if not self.planted & {"nan", "gates", "wrong"}:
            return results
        found = dict(results)
        for name, array in results.items():
            if not _is_float(array):
                continue
            if "wrong" in self.planted and name in outputs:
                # Finite, and far outside of every tolerance.
                found[name] = (array * np.asarray(1.05, array.dtype)).astype(array.dtype)
            if ("nan" in self.planted and name in outputs) or (
                "gates" in self.planted and name in gates
            ):
                found[name] = _with_nan(found[name])
        return found

    def plant(self, faults: frozenset[Fault]) -> None:
        """Plant these, and take out all others."""
        self.planted = faults


class FaultyRunner(RunnerAround):
    """A runner in whose runs faults are planted.

    Args:
        runner: What runs.
        faults: What is planted.
        model_outputs: Names of the model's outputs.
        gates: Names of its layers' gates.
    """

    def __init__(
        self, runner: Runner, faults: Faults, model_outputs: tuple[str, ...], gates: tuple[str, ...]
    ) -> None:
        self.runner = runner
        self._faults = faults
        self._names = model_outputs, gates

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; see `Runner.run`."""
        return self.run_returning(inputs, self.outputs)

    def run_returning(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        """Run the model once; see `Runner.run_returning`."""
        self._faults.before_run()
        return self._faults.after_run(self.runner.run_returning(inputs, outputs), *self._names)


def _with_nan(array: Array) -> Array:
    """Return a copy whose last element of each sample is NaN."""
    changed = np.array(array)
    if changed.size:
        changed.reshape(len(changed) if changed.ndim else 1, -1)[:, -1] = np.nan
    return changed


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"
