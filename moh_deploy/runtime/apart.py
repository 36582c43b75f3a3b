"""Run a model in a process of its own: native code that ends that process ends no other one.

Both sides exchange pickles by pipes. The other process ends with this one, as its stdin does.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast

from moh_deploy.errors import BackendError, MoHDeployError
from moh_deploy.graph.forced_gates import computed_gates
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.report.numbers import count
from moh_deploy.runtime.base import Description, Runner, Variant
from moh_deploy.system.isolate import child_environment, how_it_ended
from moh_deploy.system.npz import Array

Open: TypeAlias = Callable[[OnnxPackage | Path, Variant], Runner]
"""Opens a model; a function that its module's name finds."""


class RunnerApart(Runner):
    """A model in another process. Where inner values as outputs end it, it is opened without them.

    Runtimes compile another model for other outputs. Gates are kept: with them, outputs and routing
    can be compared.

    Args:
        opens: Opens the model, there.
        source: The model.
        variant: In which way.
    """

    def __init__(self, opens: Open, source: OnnxPackage | Path, variant: Variant) -> None:
        self._opens, self._variant, self._name = opens, variant, str(variant.runtime)
        self._notes: tuple[str, ...] = ()
        self._gates: set[str] = set()
        if isinstance(source, OnnxPackage):
            self._gates = {*source.gate_names, *map(computed_gates, source.gate_names)}
            source = replace(source, vectors=(), corpus=())  # opening it needs none
        self._source = source
        self._lock = threading.Lock()
        try:
            self._start()
        except _EndedError as error:
            self._start_without_inner_values(error, "opening the model")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once; see `Runner.run`. Inner values may be left out."""
        with self._lock:
            return self._run(inputs)

    def describe(self) -> Description:
        """Say what runs each layer, and what could not be returned."""
        return replace(self._description, notes=self._notes)

    def close(self) -> None:
        """End the other process."""
        self._process.close()

    def _start(self) -> None:
        self._process = _Process()
        opened = self._process.ask((self._opens, self._source, self._variant))
        self.inputs, self.outputs, self._description = cast("_Opened", opened)
        self._name = self._description.runtime

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return cast("dict[str, Array]", self._process.ask(inputs))
        except _EndedError as error:
            shapes = {name: list(array.shape) for name, array in inputs.items()}
            self._start_without_inner_values(error, f"running the model on {shapes}")
            return self._run(inputs)

    def _start_without_inner_values(self, error: _EndedError, doing: str) -> None:
        """Open the model again, if there is something to leave out.

        Raises:
            BackendError: There is nothing, or that ends the process as well.
        """
        kept = tuple(name for name in self._variant.extra_outputs if name in self._gates)
        lost = [name for name in self._variant.extra_outputs if name not in kept]
        if not lost:
            raise self._failure(error, doing) from error
        self._variant = replace(self._variant, extra_outputs=kept)
        self._notes = (
            f"{self._ended(error, doing)} Without {count(len(lost), 'inner value')} of layers among"
            " the outputs it runs: gates and outputs were compared, scores and attention not.",
        )
        try:
            self._start()
        except _EndedError as again:
            raise self._failure(again, doing) from again

    def _ended(self, error: _EndedError, doing: str) -> str:
        return f"{self._name} ended its process with {error} while {doing}."

    def _failure(self, error: _EndedError, doing: str) -> BackendError:
        return BackendError(self._ended(error, doing), hint="--runtime onnxruntime may run it.")


_Opened: TypeAlias = tuple[tuple[TensorInfo, ...], tuple[str, ...], Description]


class _EndedError(Exception):
    """The other process ended, and how."""


class _Process:
    """The other process, which opens a model and answers one question after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        self.close = weakref.finalize(self, _end, self._process)

    def ask(self, question: object) -> object:
        """Return the answer.

        Raises:
            MoHDeployError: It is an error.
            _EndedError: The process ended before it answered.
        """
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        try:
            pickle.dump(question, asked)
            asked.flush()
            answer = pickle.load(answers)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise _EndedError(how_it_ended(self._process.wait())) from error
        if isinstance(answer, MoHDeployError):
            raise answer
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:
        process.terminate()


def _answer_questions() -> None:
    """Open a model, and run it on one set of inputs after the other."""
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints
    runner: Runner | None = None
    while True:
        answer: object
        try:
            question = pickle.load(asked)
            if runner is None:
                opens, source, variant = question
                runner = opens(source, variant)
                answer = runner.inputs, runner.outputs, runner.describe()
            else:
                answer = runner.run(question)
        except EOFError:
            return
        except MoHDeployError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # the process that started this one says so
        _answer_questions()
