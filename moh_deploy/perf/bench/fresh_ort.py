"""The first run of an ONNX model in a process that does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from moh_deploy.errors import BackendError
from moh_deploy.package import ComputeType
from moh_deploy.perf.bench.fresh_run import FreshTask, Load, answer
from moh_deploy.runtime.onnxruntime.session import open_session, runtime_name
from moh_deploy.runtime.runner import Kernels
from moh_deploy.system.npz import read_npz
from moh_deploy.validate.matching import match_inputs


@dataclass(frozen=True)
class OrtTask(FreshTask):
    """What to load in ONNX Runtime, and to run.

    Attributes:
        kernels: What runs MoH nodes, see `open_session`.
        compute_type: What kernels may round the operands of attention's products to.
    """

    kernels: Kernels
    compute_type: ComputeType
    module: ClassVar[str] = "moh_deploy.perf.bench.fresh_ort"

    def prepare(self) -> Load:
        """Import ONNX Runtime and read the inputs."""
        runtime_name()
        arrays = read_npz(self.inputs, error=BackendError)

        def load() -> Callable[[], object]:
            session = open_session(
                self.model,
                kernels=self.kernels,
                compute_type=self.compute_type,
                threads=self.threads,
            )
            names = match_inputs(session.input_names, list(arrays), str(self.model))
            return session.bound({theirs: arrays[ours] for theirs, ours in names.items()})

        return load


if __name__ == "__main__":
    answer(OrtTask)
