"""The original model as a function: what every later form is compared with."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moh_deploy.errors import ExportError
from moh_deploy.frontend.arrays import dtype_name
from moh_deploy.frontend.inputs import parsed_dims
from moh_deploy.frontend.model import LoadedModel, ModelInput
from moh_deploy.frontend.outputs import tensors_of
from moh_deploy.frontend.record import Recording
from moh_deploy.validate.tolerances import tolerance_for


@dataclass(frozen=True)
class OriginalRun:
    """One run of the original model.

    Attributes:
        inputs: The inputs at this run's sizes.
        outputs: The tensors it returned, in order.
    """

    inputs: tuple[ModelInput, ...]
    outputs: list[torch.Tensor]

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each dynamic dimension in this run."""
        sizes: dict[str, int] = {}
        for item in self.inputs:
            for axis, expr in parsed_dims(item).items():
                base = expr.solve(item.value.shape[axis])
                assert base is not None
                sizes[expr.name] = base
        return sizes

    @property
    def at(self) -> str:
        """The sizes in words, to be put behind a statement: ` at batch=3`."""
        named = ", ".join(f"{name}={size}" for name, size in self.sizes.items())
        return f" at {named}" if named else ""


def run_original(model: LoadedModel, arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run the user's own module (or program) and return its output tensors, in order."""
    call = model.module if model.module is not None else _program_module(model)
    # Copies, since a model may write into its arguments; user code may print.
    copies = [argument.clone() for argument in arguments]
    with torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        return [tensor.clone() for tensor in tensors_of(call(*copies))]


def count_flops(model: LoadedModel, arguments: Sequence[torch.Tensor]) -> int:
    """Return twice the multiply-adds of one run's products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run_original(model, arguments)
    return int(counter.get_total_flops())


def check_trace(original: OriginalRun, recording: Recording, names: Sequence[str]) -> None:
    """Check that the traced program computes what the original does, at these sizes.

    Raises:
        ExportError: Naming the output and how far it is off.
    """
    if len(original.outputs) != len(recording.outputs):
        raise ExportError(
            f"the traced program has {len(recording.outputs)} outputs{original.at},"
            f" the original model {len(original.outputs)}."
        )
    for name, expected, got in zip(names, original.outputs, recording.outputs, strict=True):
        problem = _difference(expected, got)
        if problem:
            raise ExportError(
                f"the traced program differs from the original model{original.at}:"
                f" output '{name}' {problem}.",
                hint="The model may draw random numbers, keep state between runs, or branch in"
                " Python on a size.",
            )


def _difference(expected: torch.Tensor, got: torch.Tensor) -> str | None:
    if expected.shape != got.shape:
        return f"has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.dtype != got.dtype:
        return f"has dtype {got.dtype}, expected {expected.dtype}"
    finite = expected.isfinite() & got.isfinite()
    if not bool(finite.any()):
        return None
    error = float((expected[finite].double() - got[finite].double()).abs().max())
    limit = tolerance_for(dtype_name(expected.dtype)).limit(
        float(expected[finite].double().abs().max())
    )
    return f"is off by {error:.3g}, allowed is {limit:.3g}" if error > limit else None


def _program_module(model: LoadedModel) -> torch.nn.Module:
    assert model.program is not None
    module = model.program.module()
    assert isinstance(module, torch.nn.Module)
    return module
