"""Compare a package with its vectors in a process that knows neither torch nor the user's code.

What is proven there is what a user of the package will see, and the memory of the two worlds does
not add up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from moh_deploy import errors
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.runner import Kernels, KernelUse
from moh_deploy.system.child_process import json_from


@dataclass(frozen=True)
class ProvenRun:
    """How well a package agrees with the original model, run in one way.

    Attributes:
        vector_sets: How many runs of the original were compared.
        max_abs_error: Largest absolute difference of any output element over all vectors.
        routing_agreement: Share of equal (token, head) decisions, near-ties left out.
        kernel_nodes: How many MoH nodes ran on a kernel, read from the runtime.
        function_nodes: How many ran as their function body.
        layer_runs: What ran each MoH layer, read from the runtime.
        kernels: The kernel library that was registered, or why none was.
    """

    vector_sets: int
    max_abs_error: float
    routing_agreement: float
    kernel_nodes: int
    function_nodes: int
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse

    def to_json(self) -> dict[str, object]:
        """Return the run in plain JSON types."""
        return {
            **asdict(self),
            "layer_runs": [asdict(run) for run in self.layer_runs],
            "kernels": self.kernels.to_json(),
        }


def prove(root: Path, kernels: Kernels, vectors: int | None = None) -> ProvenRun:
    """Run `moh-deploy verify` on a package.

    Args:
        root: The package, which may still be staged.
        kernels: What runs MoH nodes, see `open_session`.
        vectors: Compare with the first so many runs of the original only; None takes all.

    Returns:
        How well it agrees.

    Raises:
        ValidationError: It does not agree.
        MoHDeployError: The comparison failed, with the error of that process.
    """
    command = ["-m", "moh_deploy", "verify", str(root), "--staged", "--kernels", kernels, "--json"]
    command += [] if vectors is None else ["--vectors", str(vectors)]
    answer = json_from(command, what="the process that compares the package")
    if "error" in answer:
        raise _error(cast(dict[str, str | None], answer["error"]))
    return _run(answer)


def _run(answer: dict[str, object]) -> ProvenRun:
    layer_runs = cast("list[dict[str, str | None]]", answer["layer_runs"])
    return ProvenRun(
        vector_sets=cast(int, answer["vector_sets"]),
        max_abs_error=float(cast(float, answer["max_abs_error"])),
        routing_agreement=float(cast(float, answer["routing_agreement"])),
        kernel_nodes=cast(int, answer["kernel_nodes"]),
        function_nodes=cast(int, answer["function_nodes"]),
        layer_runs=tuple(map(LayerRun.from_json, layer_runs)),
        kernels=KernelUse.from_json(cast("dict[str, str | None]", answer["kernels"])),
    )


def _error(described: dict[str, str | None]) -> errors.MoHDeployError:
    kind = getattr(errors, described["type"] or "", errors.BackendError)
    assert issubclass(kind, errors.MoHDeployError)
    return kind(described["message"] or "", hint=described["hint"])
