"""What a run of the model gave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy.package import TensorInfo
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.runner import KernelUse

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class RunReport:
    """One run.

    Attributes:
        package: The package.
        outputs_file: Where the outputs were written.
        outputs: Name, dtype and shape of each.
        kernel_nodes: How many MoH nodes ran on a kernel, read from the runtime.
        function_nodes: How many ran as their function body.
        layer_runs: What ran each MoH layer, read from the runtime.
        kernels: The kernel library that was registered, or why none was.
        seconds: Wall time of the run itself, loading left out.
    """

    package: Path
    outputs_file: Path
    outputs: tuple[TensorInfo, ...]
    kernel_nodes: int
    function_nodes: int
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return the report in plain JSON types."""
        return {
            **asdict(self),
            "package": str(self.package),
            "outputs_file": str(self.outputs_file),
            "layer_runs": [asdict(run) for run in self.layer_runs],
            "kernels": self.kernels.to_json(),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from moh_deploy.report.tables import line, table
        from moh_deploy.runtime.layers_text import nodes_text, runs_text

        rows = [(one.name, one.dtype, str(list(one.shape))) for one in self.outputs]
        return Group(
            table(f"outputs, written to {self.outputs_file}", ["name", "dtype", "shape"], rows),
            line(f"ran in {self.seconds:.3g} s; {runs_text(self.layer_runs)}"),
            line(nodes_text(self.kernel_nodes, self.function_nodes)),
            line(self.kernels.describe()),
        )
