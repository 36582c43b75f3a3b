"""Run a model that ONNX Runtime has loaded: once, to be timed, or step by step."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from moh_deploy.errors import BackendError
from moh_deploy.package import CachesInPlace, TensorInfo
from moh_deploy.runtime.base import Description, Runner
from moh_deploy.runtime.input_check import (
    IndexCheck,
    InputCheck,
    check_inputs,
    check_room,
    empty_axis,
)
from moh_deploy.runtime.onnxruntime.values import bind_input, from_ort, to_ort, view_of
from moh_deploy.system.npz import Array

if TYPE_CHECKING:
    import onnxruntime as ort

_T = TypeVar("_T")

Device = Literal["cpu", "cuda"]
"""Where a session computes, as ONNX Runtime calls it."""


@dataclass(frozen=True)
class OrtRunner(Runner):
    """A model in an ONNX Runtime session: inputs are checked, and bfloat16 goes in and out."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    description: Description
    input_check: InputCheck
    index_check: IndexCheck
    # Outputs that are written into an input, and these inputs: one memory is both.
    buffers: Mapping[str, str]
    caches: CachesInPlace | None  # what the package says of them; None for models that are of none
    # How ONNX Runtime makes each run that is not timed; None for its defaults.
    run_options: ort.RunOptions | None
    session: ort.InferenceSession
    device: Device = "cpu"

    def describe(self) -> Description:
        return self.description

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.run_returning(inputs, self.outputs)

    def run_returning(
        self, inputs: Mapping[str, Array], outputs: Sequence[str]
    ) -> dict[str, Array]:
        self.check(self.input_check, inputs)
        if not self.buffers:
            values = {name: to_ort(array) for name, array in inputs.items()}
            names = list(outputs)
            options = self.run_options
            results = self._explaining(
                self.inputs,
                inputs,
                lambda: self.session.run_with_ort_values(names, values, options),
            )
            return {name: from_ort(value) for name, value in zip(names, results, strict=True)}
        # One memory for each buffer, a copy of the input: the caller's stays as it is. Arrays are
        # held here until all is copied: ONNX Runtime's values do not keep them.
        feeds = self.with_own_buffers(inputs)
        binding = self._bound(feeds, outputs)
        self.run_bound(binding, self.inputs, inputs)
        # Buffers whose output was not asked for have results behind.
        found = dict(zip(outputs, binding.get_outputs(), strict=False))
        return {
            name: feeds[self.buffers[name]] if name in self.buffers else from_ort(found[name])
            for name in outputs
        }

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs the model on these inputs and gives no outputs: to be timed.

        Values go in and out by a binding: a run that is handed them costs 40 us of Python. On a GPU
        inputs are copied there now, and outputs stay there.

        Raises:
            ConfigError: As `run` does.
            BackendError: A dtype is emulated: the time would be that of the emulation.
        """
        use = self.description.kernels
        if use.emulated_dtype is not None:
            raise BackendError(
                f"the model is in {use.emulated_dtype}, which ONNX Runtime on the CPU has"
                " no kernels for: it can be run and compared here by emulation, not timed.",
                hint="Time it in float32 or float16.",
            )
        self.check(self.input_check, inputs)
        # ONNX Runtime reads these very arrays: they live as long as the call.
        feeds = self.with_own_buffers(inputs)
        binding = self._bound(feeds, self.outputs, self.device)

        def call() -> None:
            # A cache that is written in place is written at the same place in each call.
            self._explaining(self.inputs, feeds, lambda: self.session.run_with_iobinding(binding))

        return call

    def steps(
        self, state: Mapping[str, Array], following: Mapping[str, str]
    ) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        return OrtSteps(self, state, following)

    def check(self, input_check: InputCheck, inputs: Mapping[str, Array]) -> None:
        """Check inputs, all of them or those without which the others are right.

        Raises:
            ConfigError: As `run` does.
        """
        sizes = input_check.check(inputs)
        if self.caches is not None:
            check_room(self.caches, sizes, inputs)
        self.index_check.check(inputs)

    def with_own_buffers(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs as ONNX Runtime reads them, of what is written in place a copy."""
        written = set(self.buffers.values())
        return {
            name: np.array(array, order="C") if name in written else np.require(array, None, "C")
            for name, array in inputs.items()
        }

    def _bound(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], device: Device = "cpu"
    ) -> ort.IOBinding:
        """Bind inputs and outputs: a buffer as both. The arrays have to outlive the binding."""
        binding = self.session.io_binding()
        values = {name: to_ort(array) for name, array in feeds.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        # Those of buffers in any case: without one, ONNX Runtime copies the buffer.
        for name in dict.fromkeys([*outputs, *self.buffers]):
            if name in self.buffers:
                binding.bind_ortvalue_output(name, values[self.buffers[name]])
            else:
                binding.bind_output(name, device)
        return binding

    def run_bound(
        self, binding: ort.IOBinding, specs: Sequence[TensorInfo], inputs: Mapping[str, Array]
    ) -> None:
        """Run by a binding; a failure is explained by these inputs.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        options = self.run_options
        self._explaining(specs, inputs, lambda: self.session.run_with_iobinding(binding, options))

    def _explaining(
        self, specs: Sequence[TensorInfo], inputs: Mapping[str, Array], run: Callable[[], _T]
    ) -> _T:
        try:
            return calling_ort("running the model", run)
        except BackendError as error:
            empty = empty_axis(specs, inputs)
            if empty is None:
                raise
            raise BackendError(
                f"the model does not run on an empty tensor: {empty}, expected 1 or more."
                f" {error.message}",
                hint="Fill that axis, or leave the call out."
                " Attention that runs on a kernel (--kernels auto) takes empty tensors.",
            ) from error


class OrtSteps:
    """A loop of one session: see `Runner.steps`.

    One binding is kept. A state that the model writes in place is bound once, as input and output.
    Of one that grows, the memory of an output becomes that of an input for the next step.

    Raises:
        ConfigError: The state is no state of this model.
    """

    def __init__(
        self, runner: OrtRunner, state: Mapping[str, Array], following: Mapping[str, str]
    ) -> None:
        specs = [spec for spec in runner.inputs if spec.name in state]
        check_inputs(specs, state)
        self._runner, self._binding = runner, runner.session.io_binding()
        # The caller's arrays stay as they are: what is written in place is a copy. Held here, since
        # a binding does not keep arrays.
        self._arrays = runner.with_own_buffers(state)
        values = {name: to_ort(array) for name, array in self._arrays.items()}
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        # What a step is checked by: some of the state says all sizes, and tables are looked up by
        # some. The rest is what the model itself made.
        self._read = [spec.name for spec in specs if spec.name in runner.index_check.reads]
        known: set[int | str] = set()
        for spec in specs:
            if not known.issuperset(spec.shape) and spec.name not in self._read:
                self._read.append(spec.name)
            known.update(spec.shape)
        # Output to the input that it becomes.
        grows = {out: name for name, out in following.items() if runner.buffers.get(out) != name}
        self._grows = grows
        self._returned = [name for name in runner.outputs if name not in following.values()]
        self._bind_outputs()
        # Last: results come in the order in which outputs are bound for the first time.
        for name, output in following.items():
            if output not in grows:
                self._binding.bind_ortvalue_output(output, values[name])
        self._input_check = InputCheck(
            [spec for spec in runner.inputs if spec.name not in state or spec.name in self._read]
        )

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the next step: see `Runner.steps`."""
        import onnxruntime as ort

        checked = {**inputs, **{name: self._arrays[name] for name in self._read}}
        self._runner.check(self._input_check, checked)
        # Held until the run is over: a binding does not keep them.
        arrays = {name: np.require(array, None, "C") for name, array in inputs.items()}
        for name, array in arrays.items():
            bind_input(self._binding, name, array)
        # Anew: else ONNX Runtime writes into the memory of the last step, whose sizes were others.
        self._bind_outputs()
        self._runner.run_bound(self._binding, self._input_check.specs, checked)
        # Not `get_outputs`, which makes a value of each cache that is written in place, too.
        results = self._binding.get_outputs_as_ortvaluevector()
        for place, name in enumerate(self._grows.values(), start=len(self._returned)):
            value = ort.OrtValue(results[place])
            self._binding.bind_ortvalue_input(name, value)
            if name in self._read:
                self._arrays[name] = view_of(value)
        return {name: from_ort(results[place]) for place, name in enumerate(self._returned)}

    def _bind_outputs(self) -> None:
        for name in self._returned:
            self._binding.bind_output(name)
        for name, input_name in self._grows.items():
            # What checks read has to be memory of the CPU.
            device = "cpu" if input_name in self._read else self._runner.device
            self._binding.bind_output(name, device)


def calling_ort(doing: str, call: Callable[[], _T]) -> _T:
    """Return what a call of ONNX Runtime returns.

    Raises:
        BackendError: It failed, in one line without codes and places of its source.
    """
    try:
        return call()
    except Exception as error:  # ONNX Runtime's exceptions have no common base class but this.
        # Status codes and source locations say nothing about the model.
        text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split()))
        text = _SOURCE_LOCATION.sub("", text)
        text = text if len(text) <= 500 else f"{text[:250]} [...] {text[-250:]}"
        raise BackendError(f"ONNX Runtime failed while {doing}: {text}") from error


# `/path/reshape.h:45 onnxruntime::Reshape::Reshape(const Shape &, bool) `, or a bare function name.
_SOURCE_LOCATION = re.compile(r"\S*\.(?:cc|h|cpp):\d+ (?:[\w:&*<>~, ]*[\w:>]\([^()]*\)|[\w:~]+) ")
