"""The report of `run`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy.package import TensorInfo
from moh_deploy.report.document import Document, Table
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.layers_text import nodes_text, runs_text


@dataclass(frozen=True)
class RunReport(Report):
    """The result of a run.

    Attributes:
        kernel_nodes: How many MoH nodes ran on a kernel, read from the runtime.
        function_nodes: How many ran as their function body.
        layer_runs: What ran each MoH layer, read from the runtime.
        kernels: The kernel library that was registered, or why none was.
        seconds: Wall time of the run itself, loading left out.
        num_nan: How many elements of an output are NaN, by its name; outputs without are left out.
        by_order: Which inputs were taken in their order, as a sentence; empty where names tell.
    """

    package: Path
    outputs_file: Path
    outputs: tuple[TensorInfo, ...]
    kernel_nodes: int
    function_nodes: int
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse
    seconds: float
    num_nan: Mapping[str, int] = field(default_factory=dict)
    by_order: str = ""

    def document(self) -> Document:
        """Return what it says."""
        rows = [(output.name, output.dtype, str(list(output.shape))) for output in self.outputs]
        title = f"outputs, written to {self.outputs_file}"
        remarks = [
            f"ran in {self.seconds:.3g} s; {runs_text(self.layer_runs)}",
            nodes_text(self.kernel_nodes, self.function_nodes),
            self.kernels.describe(),
        ]
        if self.by_order:
            remarks.append(self.by_order)
        if any(output.dtype == "bfloat16" for output in self.outputs):
            # npz has no name for them; ml_dtypes gives numpy one.
            remarks.append(
                "bfloat16 outputs are kept as their raw two bytes, which numpy reads as V2:"
                " array.view(ml_dtypes.bfloat16) gives the numbers"
            )
        for name, count in self.num_nan.items():
            size = math.prod(next(output.shape for output in self.outputs if output.name == name))
            remarks.append(
                f"output '{name}' is NaN in {count} of its {size} elements: `moh-deploy bisect`"
                " finds where that begins, if the inputs are not NaN themselves"
            )
        return Document(
            "run",
            (Table(title, ("name", "dtype", "shape"), rows),),
            remarks=tuple(remarks),
            warning=self.kernels.warning,
        )
