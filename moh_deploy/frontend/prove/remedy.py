"""Say what to do if a runtime computes something else than the original."""

import torch
from torch.export import ExportedProgram

from moh_deploy.frontend.fx.arrays import dtype_name, shortest_float
from moh_deploy.frontend.fx.graph import is_tensor, named, tensor
from moh_deploy.frontend.fx.views import is_view
from moh_deploy.frontend.prove.size_runs import SizeRuns


def remedy(program: ExportedProgram, precision: torch.dtype, sizes: SizeRuns) -> str | None:
    """Return the remedy for the first cause that a program and its runs show.

    Args:
        precision: The shortest floating-point dtype among weights and outputs.
    """
    for run, recording in zip(sizes.runs, sizes.recordings, strict=True):
        if recording.tied is not None:
            return (
                f"{named(recording.tied)} chooses among tokens, and two of them tie for its last"
                f" place{run.at}: PyTorch leaves open which it takes. Give an example"
                " in which all tokens differ, or choose by sort(descending=True, stable=True),"
                " which takes the first."
            )
    for node in program.graph.nodes:
        if node.op == "call_function" and is_tensor(node) and not is_view(node):
            dtype = shortest_float([tensor(node)])
            if torch.finfo(dtype).eps > torch.finfo(precision).eps:
                return (
                    f"{named(node)} computes in {dtype_name(dtype)}, the model in"
                    f" {dtype_name(precision)}: runtimes round such results differently. Export it"
                    " without torch.autocast; if all of its forward is under it, --dtype does the"
                    " same."
                )
    return None
