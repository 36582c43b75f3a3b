"""One run of the original model beside its traced program, as reference vectors record it."""

from __future__ import annotations

from collections.abc import Sequence

from torch.export import ExportedProgram

from moh_deploy.errors import ExportError
from moh_deploy.frontend.arrays import dtype_name, to_numpy
from moh_deploy.frontend.model import ModelInput
from moh_deploy.frontend.original import OriginalRun, check_trace
from moh_deploy.frontend.record import Recording, record
from moh_deploy.frontend.rewrite import Rewrite
from moh_deploy.frontend.rewrite.swap import Swap
from moh_deploy.package import VectorSet


def record_run(
    program: ExportedProgram,
    rewrites: Sequence[Rewrite],
    swaps: Sequence[Swap],
    run: OriginalRun,
    outputs: Sequence[str],
) -> Recording:
    """Run the traced program at the sizes of one run of the original, and check that they agree."""
    arguments = [item.value.clone() for item in run.inputs]
    try:
        recording = record(program, rewrites, arguments, swaps)
    except RuntimeError as error:
        raise ExportError(
            f"the traced program does not run where the original model does{run.at}:"
            f" {str(error).splitlines()[0]}.",
            hint="The model fixes a size while it is traced, although the dimension is dynamic.",
        ) from error
    check_trace(run, recording, outputs)
    return recording


def recorded_vectors(run: OriginalRun, recording: Recording, outputs: Sequence[str]) -> VectorSet:
    """Return what is written into a package, or compared with."""
    return VectorSet(
        sizes=run.sizes,
        inputs={item.name: to_numpy(item.value) for item in run.inputs},
        outputs={name: to_numpy(tensor) for name, tensor in zip(outputs, run.outputs, strict=True)},
        gates=tuple(to_numpy(layer.gates) for layer in recording.layers),
        margins=tuple(to_numpy(layer.margins) for layer in recording.layers),
    )


def input_text(item: ModelInput) -> str:
    """Return `x float32[2, 3]`."""
    return f"{item.name} {dtype_name(item.value.dtype)}{list(item.value.shape)}"
