"""The models that a runtime is chosen for: packages, and ONNX files that belong to none."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.graph.forced_gates import computed_gates
from moh_deploy.package import ComputeType, Manifest, OnnxPackage, Runtime, TensorInfo
from moh_deploy.report.report import count
from moh_deploy.runtime.base import AS_IT_IS, Deployed, Description, Model, Runner, Variant
from moh_deploy.runtime.kernel_use import KernelUse, choose_kernels
from moh_deploy.runtime.onnxruntime.cuda import choose_cuda_kernels, cuda_name, open_on_cuda
from moh_deploy.runtime.onnxruntime.session import open_session, runtime_name
from moh_deploy.runtime.openvino.extension import choose_extension, openvino_name
from moh_deploy.runtime.openvino.runner import open_compiled
from moh_deploy.system.isolate import child_environment, how_it_ended
from moh_deploy.system.npz import Array

# Run a model in a process of its own: native code that ends that process ends no other one.
#
# Both sides exchange pickles by pipes. The other process ends with this one, as its stdin does.

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
            try:
                return cast("dict[str, Array]", self._process.ask(inputs))
            except _EndedError as error:
                shapes = {name: list(array.shape) for name, array in inputs.items()}
                self._start_without_inner_values(error, f"running the model on {shapes}")
        return self.run(inputs)

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

    def _start_without_inner_values(self, error: _EndedError, doing: str) -> None:
        """Open the model again, if there is something to leave out.

        Raises:
            BackendError: There is nothing, or that ends the process as well.
        """

        def ended(error: _EndedError) -> str:
            return f"{self._name} ended its process with {error} while {doing}."

        failure = BackendError(ended(error), hint="--runtime onnxruntime may run it.")
        kept = tuple(name for name in self._variant.extra_outputs if name in self._gates)
        lost = len(self._variant.extra_outputs) - len(kept)
        if not lost:
            raise failure from error
        self._variant = replace(self._variant, extra_outputs=kept)
        self._notes = (
            f"{failure.message} Without {count(lost, 'inner value')} of layers among"
            " the outputs it runs: gates and outputs were compared, scores and attention not.",
        )
        try:
            self._start()
        except _EndedError as again:
            raise BackendError(ended(again), hint=failure.hint) from again


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
        self.close = weakref.finalize(self, _terminate, self._process)

    def ask(self, question: object) -> object:
        """Send a question and return the answer.

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


def _terminate(process: subprocess.Popen[bytes]) -> None:
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


def _open_openvino(source: OnnxPackage | Path, variant: Variant) -> Runner:
    if variant.apart and variant.extra_outputs:
        return RunnerApart(open_compiled, source, variant)
    return open_compiled(source, variant)


class _RuntimeDoes(NamedTuple):
    """What a runtime does: `name` of the one that runs here, which `kernels` it would take for a
    variant and what a package allows, and `open`. Each raises a BackendError if it is not there.
    """

    name: Callable[[], str]
    kernels: Callable[[Variant, ComputeType], KernelUse]
    open: Open


# A runtime for packages and ONNX files adds its line here, and its name to `Runtime`. Functions are
# looked up when they are called: tests put others in their place.
_RUNTIMES: Mapping[Runtime, _RuntimeDoes] = {
    "onnxruntime": _RuntimeDoes(
        lambda: runtime_name(),
        lambda variant, allowed: choose_kernels(variant.kernels, compute_type=allowed),
        lambda source, variant: open_session(source, variant),
    ),
    "openvino": _RuntimeDoes(
        lambda: openvino_name(),
        lambda variant, allowed: choose_extension(variant, allowed)[1],
        _open_openvino,
    ),
    "onnxruntime-cuda": _RuntimeDoes(
        lambda: cuda_name(),
        lambda variant, allowed: choose_cuda_kernels(variant, allowed),
        lambda source, variant: open_on_cuda(source, variant),
    ),
}


def runtime_name_of(runtime: Runtime) -> str:
    """Return the name and version of a runtime, such as `ONNX Runtime 1.32.0`.

    Raises:
        BackendError: It is not installed.
    """
    return _RUNTIMES[runtime].name()


def runtime_for(asked: Runtime | None, preferred: Runtime | None) -> Runtime:
    """Return what runs a package: what is asked for, or else what the package was tuned for.

    Raises:
        BackendError: Nothing is asked for, and what it was tuned for is not installed.
    """
    if asked is not None or preferred is None:
        return asked or "onnxruntime"
    try:
        runtime_name_of(preferred)
    except BackendError as error:
        raise BackendError(
            f"the package was tuned for {preferred}, which is not here: {error.message}",
            hint=f"{error.hint or ''} --runtime onnxruntime runs it without, at another"
            " speed.".lstrip(),
        ) from error
    return preferred


def require_onnxruntime(package: str, preferred: Runtime | None, who: str) -> None:
    """Refuse a package that was tuned for another runtime, for who runs ONNX Runtime alone.

    Args:
        package: In words.
        preferred: What it was tuned for.
        who: The subject of a sentence.

    Raises:
        ConfigError: It was.
    """
    if preferred in (None, "onnxruntime"):
        return
    raise ConfigError(
        f"{package} was tuned for {preferred}, and {who} runs models in ONNX Runtime alone: at"
        " another speed than was measured.",
        hint="`moh-deploy tune DIR --within CONDITION --runtime onnxruntime` finds the fastest"
        " package for ONNX Runtime.",
    )


def kernels_of(variant: Variant, compute_type: ComputeType) -> KernelUse:
    """Say which kernels a model would run on, before one is opened.

    Raises:
        BackendError: The runtime is not installed, or its library is there and cannot be used.
    """
    return _RUNTIMES[variant.runtime].kernels(variant, compute_type)


@dataclass(frozen=True)
class PackageDir(Deployed):
    """A package, which is read when it is first asked for something."""

    root: Path
    # The package, if it was read already.
    opened: OnnxPackage | None = field(default=None, repr=False)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Take any directory, and what is missing: reading it says why it is no package."""
        # So it has to be asked last: see `open_runner`. Unlike `Path.is_file`, this never raises
        # where a directory may not be entered.
        return not os.path.isfile(path)

    @property
    def name(self) -> str:
        return f"package {self.root}"

    @cached_property
    def package(self) -> OnnxPackage:
        """The package, read when it is first asked for.

        Raises:
            PackageError: It is not a package, or has changed since it was written.
        """
        # Reading checks digests of all files, so a package that was read is not read again.
        return self.opened or OnnxPackage.open(self.root)

    @property
    def manifest(self) -> Manifest:
        return self.package.manifest

    @property
    def preferred_runtime(self) -> Runtime | None:
        """Return the runtime that the package was tuned for; see `Deployed.preferred_runtime`."""
        return self.manifest.runtime

    def made_from(self, package: Path | None, *, staged: bool = False) -> OnnxPackage:
        """Return the package itself; see `Deployed.made_from`."""
        if package is not None:
            raise ConfigError(f"package is {package}, but {self.root} is no engine: leave it out.")
        return OnnxPackage.open(self.root, staged=staged) if staged else self.package

    def open(self, variant: Variant = AS_IT_IS) -> Runner:
        return _RUNTIMES[variant.runtime].open(self.package, variant)

    def import_runtime(self, runtime: Runtime) -> None:
        runtime_name_of(runtime)

    def alone(self, variant: Variant) -> tuple[Model, Variant] | None:
        """Return the package's model by itself: reading a package takes time of its own."""
        # A bare model file has no manifest, so what that allows goes along with the variant.
        compute_type = variant.compute_type or self.manifest.compute_type
        return OnnxFile(self.package.model_path), replace(variant, compute_type=compute_type)


@dataclass(frozen=True)
class OnnxFile(Model):
    """An ONNX model that belongs to no package."""

    path: Path

    @staticmethod
    def is_one(path: Path) -> bool:
        """Go by the name: a file that is missing is no package either."""
        return path.suffix == ".onnx" and not os.path.isdir(path)

    @property
    def name(self) -> str:
        return f"ONNX model {self.path}"

    def open(self, variant: Variant = AS_IT_IS) -> Runner:
        return _RUNTIMES[variant.runtime].open(self.path, variant)

    def import_runtime(self, runtime: Runtime) -> None:
        runtime_name_of(runtime)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # the process that started this one says so
        _answer_questions()
