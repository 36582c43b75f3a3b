"""The first run of an original model in a process that does nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from moh_deploy.config.options import ModelOptions
from moh_deploy.errors import BackendError
from moh_deploy.perf.bench.fresh_run import FreshTask, Load, answer
from moh_deploy.system.npz import read_npz


@dataclass(frozen=True)
class EagerTask(FreshTask):
    """What to load in PyTorch, and to run.

    Attributes:
        options: How to load it.
    """

    options: ModelOptions
    module: ClassVar[str] = "moh_deploy.frontend.prove.fresh_eager"

    def prepare(self) -> Load:
        """Import PyTorch and read the inputs."""
        import torch

        from moh_deploy.frontend.prove.eager import open_eager

        torch.set_num_threads(self.threads or torch.get_num_threads())
        options = replace(self.options, model=self.model)
        arguments = list(read_npz(self.inputs, error=BackendError).values())
        return lambda: open_eager(options).bound(arguments)


if __name__ == "__main__":
    answer(EagerTask)
