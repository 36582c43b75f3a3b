"""An engine in a benchmark: from arrays to arrays, with the copies to the GPU and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.perf.bench.contestants import fed_by
from moh_deploy.perf.bench.fresh_engine import EngineTask
from moh_deploy.runtime.runner import KernelUse
from moh_deploy.runtime.tensorrt.engine import Engine
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.system.npz import Array
from moh_deploy.validate.input_sets import InputSet


@dataclass(frozen=True)
class EngineContestant:
    """An engine on the first GPU.

    Attributes:
        engine: Open until the benchmark is over.
        kernel_use: Its plugin library.
    """

    engine: Engine
    kernel_use: KernelUse

    @property
    def runtime(self) -> str:
        """See `Contestant.runtime`."""
        manifest = self.engine.manifest
        title = FLAVOURS[manifest.backend].title
        gpu = f" on {manifest.versions['GPU']}" if "GPU" in manifest.versions else " on a GPU"
        return f"{title} {manifest.versions.get(title, 'of unknown version')}{gpu}"

    @property
    def precisions(self) -> tuple[str, ...]:
        """See `Contestant.precisions`."""
        return (self.engine.manifest.precision,)

    def outputs(self, one: InputSet) -> list[Array]:
        """Run once; see `Contestant.outputs`."""
        found = self.engine.run(self._feeds(one))
        return [found[spec.name] for spec in self.engine.manifest.outputs]

    def bound(self, one: InputSet) -> Callable[[], object]:
        """Return a run; see `Contestant.bound`."""
        feeds = self._feeds(one)
        return lambda: self.engine.run(feeds)

    def fresh_task(self, inputs: Path) -> EngineTask:
        """Return what loads the engine again."""
        return EngineTask(self.engine.root, inputs, None)

    def _feeds(self, one: InputSet) -> dict[str, Array]:
        return fed_by(one, self.engine.manifest.inputs, str(self.engine.root))
