"""One run of the original model beside its traced program, as reference vectors record it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.export import ExportedProgram

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.arrays import dtype_name, to_numpy
from moh_deploy.frontend.limits import unmet_assertions
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.prove.original import OriginalRun, check_trace
from moh_deploy.frontend.prove.record import Recording, record
from moh_deploy.frontend.prove.valid_elements import EVERYTHING, ValidElements
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.frontend.rewrite.swap import Swap
from moh_deploy.package import VectorSet


@dataclass(frozen=True)
class DoesNotRun:
    """The traced program does not run at the sizes of a run of the original; or it computes
    something else there, and says so by what it asserts of sizes.

    Attributes:
        why: The first line of what PyTorch says, or the difference, and what is asserted; without a
            full stop.
    """

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

    Args:
        valid: What is compared.
        measure_rounding: Measure how far rounding moves it, too.

    Raises:
        ExportError: It computes something else, at sizes of which it asserts nothing against.
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
