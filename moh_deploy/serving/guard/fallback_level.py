"""A fallback level: a model that is opened in one of several ways, when it is first needed."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import choices_for, with_choices
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed, opened_package
from moh_deploy.serving.guard.guard_io import Faults, FaultyRunner
from moh_deploy.serving.guard.policy import LevelSection
from moh_deploy.serving.guard.same_answers import require_same_interface
from moh_deploy.serving.source import require_known_answer
from moh_deploy.system.npz import Array
from moh_deploy.system.staging import scratch_directory


@dataclass(eq=False)
class FallbackLevel:
    """A level that runs batches. It opens its model when needed, and again after a kernel error.

    Before it serves, and again after each fault, it has to give a known answer.
    """

    name: str  # in logs and metrics
    model: Deployed
    variant: Variant  # how it opens the model
    same_answers: bool = True  # as the first level, except for rounding
    needs_kernels: bool = False  # refuse a model without nodes on kernels
    faults: Faults | None = None  # of a drill; None where no drill is allowed

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self._is_proven = False
        self._lacks_library = False

    @property
    def is_open(self) -> bool:
        """Tell whether its model is in memory."""
        return self._runner is not None

    def open(self) -> Runner:
        """Open the model and try its known answer, if that is due.

        Raises:
            ValidationError: It answers a recorded run wrongly.
            MoHDeployError: It cannot be opened.
        """
        lacks_library = self.faults is not None and "missing-library" in self.faults.planted
        if lacks_library != self._lacks_library:
            self._lacks_library = lacks_library
            self.forget()
        with self._lock:
            if self._runner is None or not self._is_proven:
                # Kept once it is proven only: after a wrong answer the model is loaded anew.
                runner, self._runner = self._runner or self._opened(), None
                require_known_answer(self.model, self.variant, runner)
                self._runner, self._is_proven = runner, True
            return self._runner

    def run(
        self,
        runner: Runner,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        inner: Sequence[str],
    ) -> tuple[dict[str, Array], float]:
        """Run a batch on the opened model, and return its results and the seconds that it took.

        The runner is the caller's: another thread may drop the level's own meanwhile.

        Raises:
            ConfigError: The inputs do not fit.
            BackendError: The runtime failed.
        """
        start = time.perf_counter()
        # Inner values of another package are of layers of its own.
        own = self.variant.extra_outputs if self.same_answers else ()
        wanted = (*outputs, *(name for name in inner if name in own))
        return runner.run_returning(inputs, wanted), time.perf_counter() - start

    def describe(self) -> Description:
        """Say what runs each layer."""
        return (self._runner or self.open()).describe()

    def distrust(self) -> None:
        """Ask for the known answer again before the next run."""
        self._is_proven = False

    def forget(self) -> None:
        """Drop a model that failed: the next run opens it again."""
        with self._lock:
            # Other threads may be in it: it is closed when the last of them drops it.
            self._runner = None

    def close(self) -> None:
        """Close the level's model."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()
            self._runner = None

    def _opened(self) -> Runner:
        variant = self.variant
        if self._lacks_library:
            missing = Path("/nonexistent/planted-by-a-drill.so")
            variant = replace(variant, library=missing, kernels="require")
        runner = self.model.open(variant)
        if self.needs_kernels:
            found = runner.describe()
            # `auto` runs function bodies where there is no library: that is the level below.
            if found.function_nodes and not found.kernel_nodes:
                why = found.kernels.reason or "the library has no kernels for its operators"
                raise BackendError(f"no layer runs on a kernel: {why}")
        return runner if self.faults is None else FaultyRunner(runner, self.faults)


def find_level(
    section: LevelSection,
    model: Deployed,
    way: Variant,
    resources: ExitStack,
    faults: Faults | None,
) -> FallbackLevel:
    """Find the model of a level of a policy; `resources` takes the folder of one that is written.

    Raises:
        ConfigError: An engine has no such level, a package has no layer that could be dense, or
            another package has other inputs or outputs.
        PackageError: Another package cannot be read.
    """
    name = section.called
    if section.kind == "package":
        assert section.path is not None, "a policy has a path for each level of kind package"
        other = find_deployed(section.path)
        title = f"fallback level '{name}', {section.path},"
        require_same_interface(title, model.manifest, other.manifest)
        # Its gates are for its known answer.
        gates = () if other.is_compiled else tuple(other.made_from(None).gate_names)
        runtime = runtime_for(None, other.preferred_runtime)
        way = replace(way, runtime=runtime, extra_outputs=gates)
        return FallbackLevel(name, other, way, same_answers=False, faults=faults)
    if section.kind == "kernels":
        needs_kernels = not model.is_compiled
        return FallbackLevel(name, model, way, needs_kernels=needs_kernels, faults=faults)
    if model.is_compiled:
        raise ConfigError(
            f"{model.name} is an engine, which has no fallback level of kind '{section.kind}'.",
            hint="Name its package as a level: {kind: package, path: ...}.",
        )
    if section.kind == "functions":
        return FallbackLevel(name, model, replace(way, kernels="off"), faults=faults)
    package = model.made_from(None)
    layers = package.manifest.layers
    if not any(map(choices_for, layers)):
        raise ConfigError(
            f"{package.root} has no layer that could be dense.", hint="Leave the level out."
        )
    folder = resources.enter_context(scratch_directory("moh-deploy-guard"))
    dense = write_choices(package, with_choices(layers, {"all": "dense"}), folder / name)
    return FallbackLevel(name, opened_package(dense), way, faults=faults)
