"""The original model as a function: what every later form is compared with."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.fx.arrays import dtype_name, to_numpy
from moh_deploy.frontend.fx.containers import tensors_of
from moh_deploy.frontend.inputs.padding import tokens_of
from moh_deploy.frontend.limits import unmet_assertions
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.prove.measured_rounding import EVERYTHING, ValidElements
from moh_deploy.frontend.prove.record import Recording, distance, record
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.frontend.rewrite.rewritten import Swap
from moh_deploy.package import VectorSet
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.compare.tolerances import tolerance_for
from moh_deploy.validate.reference.samples import only_padding, padding_place
from moh_deploy.validate.reference.valid_tokens import ValidTokens

_SMALL_MODEL_BYTES = 1 << 29


@dataclass(frozen=True)
class OriginalRun:
    """One run of the original model."""

    inputs: tuple[ModelInput, ...]
    outputs: list[torch.Tensor]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each dynamic dimension in this run."""
        sizes: dict[str, int] = {}
        for item in self.inputs:
            for axis, expr in item.parsed_dims.items():
                base = expr.solve(item.value.shape[axis])
                assert base is not None
                sizes[expr.name] = base
        return sizes

    @property
    def valid_tokens(self) -> ValidTokens | None:
        """The tokens of this run that are valid; None if all are."""
        return next((tokens_of(item) for item in self.inputs if item.says_valid), None)

    @property
    def at(self) -> str:
        """The sizes in words, to be put behind a statement: ` at batch=3`."""
        named = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
        return f" at {named}" if named else ""


def run_original(model: LoadedModel, arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run the user's own module (or program) and return its output tensors, in order."""
    call = model.callable()
    # Copies, since a model may write into its arguments.
    copies = [argument.clone() for argument in arguments]
    with torch.no_grad():
        return [tensor.clone() for tensor in tensors_of(call(*copies))]


def run_example(model: LoadedModel, inputs: Sequence[ModelInput]) -> tuple[OriginalRun, int | None]:
    """Run the original on the example.

    Returns:
        The run, and twice the multiply-adds of its products, convolutions and attention; None where
        the model runs, but not while torch counts (flex_attention does not).

    Raises:
        ExportError: The user's own code fails, which it may in any way.
    """
    arguments = [item.value for item in inputs]
    counted = replace(model, original=None)  # torch counts what it computes itself
    try:
        try:
            with FlopCounterMode(display=False) as counter:
                outputs = run_original(counted, arguments)
            flops: int | None = int(counter.get_total_flops())
        except Exception:  # whose fault it is, a run without the counter says
            torch.compiler.reset()  # what was being compiled when it failed would fail again
            outputs, flops = run_original(counted, arguments), None
        if model.original is not None:
            outputs = run_original(model, arguments)
    except Exception as error:
        given = ", ".join(map(input_text, inputs))
        raise ExportError(
            f"the model itself fails on these inputs ({given}): {describe_error(error)}.",
            hint="Check names, shapes and dtypes; --dtype brings model and inputs to one dtype.",
        ) from error
    return OriginalRun(tuple(inputs), outputs), flops


@contextlib.contextmanager
def on_threads(threads: int | None) -> Iterator[None]:
    """Let PyTorch use so many threads within an operator; None for as many as before."""
    # Of the whole process: other threads of it would compute with as many.
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread_if_small(model: LoadedModel) -> contextlib.AbstractContextManager[None]:
    """Run small models on one thread: there, handing work to others costs more than it saves."""
    if model.module is not None:
        tensors = list(model.module.parameters())
    else:
        assert model.program is not None
        tensors = list(filter(torch.is_tensor, model.program.state_dict.values()))
    return on_threads(1 if sum(tensor.nbytes for tensor in tensors) < _SMALL_MODEL_BYTES else None)


def check_trace(
    original: OriginalRun,
    recording: Recording,
    names: Sequence[str],
    valid: ValidElements = EVERYTHING,
) -> None:
    """Check that the traced program computes what the original does, at these sizes.

    Raises:
        ExportError: Naming the output and how far it is off.
    """
    if len(original.outputs) != len(recording.outputs):
        raise ExportError(
            f"the traced program has {len(recording.outputs)} outputs{original.at},"
            f" the original model {len(original.outputs)}."
        )
    problem = _first_difference(original, recording, names, valid)
    if problem is None:
        return
    # Without a mask that is known: is it what may be padding that differs?
    masks = [] if valid.tokens is not None else _masks_of(original.inputs)
    found = [
        mask.name
        for mask in masks
        if _first_difference(original, recording, names, valid.where(mask)) is None
    ]
    where = f" It does so only {padding_place(found[0])}." if found else ""
    raise ExportError(
        f"the traced program differs from the original model{original.at}: {problem}.{where}",
        hint=f"{only_padding(found)}The model may draw random numbers, keep state between runs,"
        " branch in Python on a size, or be a subclass that PyTorch's TransformerEncoderLayer"
        " passes by on its fast path: torch.backends.mha.set_fastpath_enabled(False) turns that"
        " off.",
    )


def _masks_of(inputs: Sequence[ModelInput]) -> Iterator[ValidTokens]:
    """Yield the inputs that could say which tokens are valid, and say so of some and not of all."""
    for item in inputs:
        if item.value.ndim == 2 and not item.value.is_complex():
            with contextlib.suppress(ConfigError):
                for padding in (False, True):
                    tokens = tokens_of(replace(item, marks_padding=padding))
                    if tokens.mask.any() and not tokens.mask.all():
                        yield tokens


def _first_difference(
    original: OriginalRun, recording: Recording, names: Sequence[str], valid: ValidElements
) -> str | None:
    """Say of the first output that differs how; None if all are equal."""
    for name, expected, got in zip(names, original.outputs, recording.outputs, strict=True):
        found = f"output '{name}'"
        if expected.shape != got.shape:
            return f"{found} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
        if expected.dtype != got.dtype:
            return f"{found} has dtype {got.dtype}, expected {expected.dtype}"
        error, largest = distance(expected, got, valid.of_output(name, expected))
        if math.isinf(error):
            return f"{found} is not finite where the original is"
        limit = tolerance_for(dtype_name(expected.dtype)).limit(largest)
        if error > limit:
            return f"{found} is off by {error:.3g}, allowed is {limit:.3g}"
    return None


# One run of the original model beside its traced program, as reference vectors record it.


@dataclass(frozen=True)
class DoesNotRun:
    """The traced program does not run at the sizes of a run of the original; or it computes
    something else there, and says so by what it asserts of sizes.
    """

    # The first line of what PyTorch says, or the difference, and what is asserted; without a full
    # stop.
    why: str


def try_to_record(
    program: ExportedProgram,
    rewrites: Sequence[Rewrite],
    swaps: Sequence[Swap],
    run: OriginalRun,
    outputs: Sequence[str],
    *,
    valid: ValidElements = EVERYTHING,
    measure_rounding: bool = False,
) -> Recording | DoesNotRun:
    """Run the traced program at the sizes of one run of the original, and check that they agree.

    Raises:
        ExportError: It computes something else, at sizes that its assertions allow.
    """
    arguments = [item.value.clone() for item in run.inputs]
    try:
        recording = record(
            program,
            rewrites,
            arguments,
            swaps,
            rounding_of=outputs if measure_rounding else None,
            valid=valid,
        )
        check_trace(run, recording, outputs, valid)
    # What torch raises for a size that an operator does not take; what it asserts of sizes is not
    # checked while it runs.
    except (RuntimeError, IndexError, ValueError, TypeError, ArithmeticError, ExportError) as error:
        unmet = unmet_assertions(program, run.inputs, run.sizes)
        if isinstance(error, ExportError) and not unmet:
            raise
        said = error.message if isinstance(error, ExportError) else str(error)
        why = (said.splitlines() or [type(error).__name__])[0].rstrip(".")
        return DoesNotRun(f"{why}; it was traced for {unmet[0]}" if unmet else why)
    return recording


def recorded_vectors(
    run: OriginalRun, recording: Recording | None, outputs: Sequence[str]
) -> VectorSet:
    """Return what is written into a package, or compared with: without a recording no gates."""
    layers = () if recording is None else recording.layers
    return VectorSet(
        sizes=run.sizes,
        inputs={item.name: to_numpy(item.value) for item in run.inputs},
        outputs={name: to_numpy(tensor) for name, tensor in zip(outputs, run.outputs, strict=True)},
        gates=tuple(to_numpy(layer.gates) for layer in layers),
        margins=tuple(to_numpy(layer.margins) for layer in layers),
        scores=tuple(layer.scores for layer in layers),
        attention=tuple(layer.attention for layer in layers),
    )


def input_text(item: ModelInput) -> str:
    """Return `x float32[2, 3]`."""
    return f"{item.name} {dtype_name(item.value.dtype)}{list(item.value.shape)}"
