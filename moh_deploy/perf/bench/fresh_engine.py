"""The first run of an engine in a process that does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from moh_deploy.errors import BackendError
from moh_deploy.perf.bench.fresh_run import FreshTask, Load, answer
from moh_deploy.runtime.tensorrt.engine import Engine
from moh_deploy.system.npz import read_npz
from moh_deploy.validate.matching import match_inputs


@dataclass(frozen=True)
class EngineTask(FreshTask):
    """An engine directory to load, and to run. Loading imports TensorRT, too."""

    module: ClassVar[str] = "moh_deploy.perf.bench.fresh_engine"

    def prepare(self) -> Load:
        """Read the inputs."""
        arrays = read_npz(self.inputs, error=BackendError)

        def load() -> Callable[[], object]:
            engine = Engine(self.model)
            theirs = [spec.name for spec in engine.manifest.inputs]
            names = match_inputs(theirs, list(arrays), str(self.model))
            feeds = {name: arrays[ours] for name, ours in names.items()}
            return lambda: engine.run(feeds)

        return load


if __name__ == "__main__":
    answer(EngineTask)
