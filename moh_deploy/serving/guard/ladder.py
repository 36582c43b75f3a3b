"""The rungs of the ladder as what runs: which model, opened in which way, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.graph.write_choices import write_choices
from moh_deploy.package import OnnxPackage, choices_for, with_choices
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed, opened_package
from moh_deploy.serving.guard.faults import Faults, FaultyRunner
from moh_deploy.serving.guard.policy import RungSection
from moh_deploy.serving.guard.same_interface import require_same_interface
from moh_deploy.serving.known_answer import require_known_answer
from moh_deploy.system.npz import Array


@dataclass(frozen=True)
class RungModel:
    """A rung that was found and not opened.

    Attributes:
        name: What logs and metrics call it.
        model: What it opens.
        variant: In which way.
        outputs: The model's outputs.
        same_answers: It computes what the first rung does, but for rounding.
        needs_kernels: It is not what its name says if no node of it runs on a kernel.
    """

    name: str
    model: Deployed
    variant: Variant
    outputs: tuple[str, ...]
    same_answers: bool
    needs_kernels: bool = False

    @property
    def package(self) -> OnnxPackage | None:
        """The package that it is; None for an engine."""
        return None if self.model.is_compiled else self.model.made_from(None)


class Rung:
    """A rung that runs. It is opened when it is first asked, and again after it failed.

    Each time that it comes into service it has to give a known answer first.

    Args:
        found: What it opens.
        gates: Names of its layers' gates, which faults may be planted in.
        faults: What a drill has planted; None where no drill is allowed.
    """

    def __init__(self, found: RungModel, gates: Sequence[str], faults: Faults | None) -> None:
        self.found = found
        self._gates = tuple(gates)
        self._faults = faults
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self._is_proven = False
        self._lacks_library = False

    @property
    def is_open(self) -> bool:
        """Whether its model is in memory."""
        return self._runner is not None

    def open(self) -> Runner:
        """Open it, if it is not yet, and try its known answer, if that is due.

        Raises:
            ValidationError: It answers a recorded run wrongly.
            MoHDeployError: It cannot be opened.
        """
        self._follow_faults()
        with self._lock:
            if self._runner is None or not self._is_proven:
                # Kept once it is proven only: after a wrong answer the model is loaded anew.
                runner, self._runner = self._runner or self._opened(), None
                require_known_answer(self.found.model, self.found.variant, runner)
                self._runner, self._is_proven = runner, True
            return self._runner

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], inner: Sequence[str]
    ) -> tuple[dict[str, Array], float]:
        """Run a batch, and say how many seconds that took.

        Args:
            inputs: The batch.
            outputs: The outputs of the model.
            inner: Inner values that are wanted; those that it does not have are left out.

        Raises:
            ConfigError: The inputs do not fit.
            BackendError: The runtime failed.
        """
        runner = self.open()
        start = time.perf_counter()
        # Inner values of another package are of layers of its own.
        own = self.found.variant.extra_outputs if self.found.same_answers else ()
        wanted = (*outputs, *(name for name in inner if name in own))
        return runner.run_returning(inputs, wanted), time.perf_counter() - start

    def describe(self) -> Description:
        """Say what runs each layer."""
        return (self._runner or self.open()).describe()

    def distrust(self) -> None:
        """Ask for the known answer again before the next run."""
        self._is_proven = False

    def forget(self) -> None:
        """Let go of a model that failed: the next run opens it again."""
        with self._lock:
            # Other threads may be in it: it is closed when the last of them lets go.
            self._runner = None

    def close(self) -> None:
        """Give back the model."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()
            self._runner = None

    def _opened(self) -> Runner:
        variant = self.found.variant
        if self._lacks_library:
            missing = Path("/nonexistent/planted-by-a-drill.so")
            variant = replace(variant, library=missing, kernels="require")
        runner = self.found.model.open(variant)
        if self.found.needs_kernels:
            said = runner.describe()
            # `auto` runs function bodies where there is no library: another rung than this one.
            if said.function_nodes and not said.kernel_nodes:
                why = said.kernels.reason or "the library has none for its operators"
                raise BackendError(f"no layer runs on a kernel: {why}")
        if self._faults is None:
            return runner
        return FaultyRunner(runner, self._faults, self.found.outputs, self._gates)

    def _follow_faults(self) -> None:
        """Lose the library, or find it again, as a drill has it."""
        lacks = self._faults is not None and "missing-library" in self._faults.planted
        if lacks != self._lacks_library:
            self._lacks_library = lacks
            self.forget()


@dataclass(frozen=True)
class LadderSetting:
    """The models and settings that rungs are made of.

    Attributes:
        way: How rungs are opened: threads, kernels.
        inner: Inner values that may be wanted of rungs that are the package itself.
        scratch: Where a package may be written that is made for this.
    """

    way: Variant
    inner: tuple[str, ...]
    scratch: Path


def find_rung(section: RungSection, model: Deployed, setting: LadderSetting) -> RungModel:
    """Find what a rung of a policy opens.

    Args:
        section: The rung.
        model: What is served.
        setting: How it is opened.

    Raises:
        ConfigError: An engine has no such rung, a package has no layer that could be dense, or
            another package does not take and return the same.
        PackageError: Another package cannot be read.
    """
    variant = setting.way.returning(setting.inner)
    outputs = tuple(one.name for one in model.manifest.outputs)
    if section.kind == "package":
        assert section.path is not None
        other = find_deployed(section.path)
        require_same_interface(
            f"rung '{section.called}', {section.path},", model.manifest, other.manifest
        )
        way = replace(setting.way, runtime=runtime_for(None, other.preferred_runtime))
        if not other.is_compiled:  # its gates are for its known answer
            way = way.returning(other.made_from(None).gate_names)
        return RungModel(section.called, other, way, outputs, same_answers=False)
    if section.kind == "kernels":
        needs = not model.is_compiled
        return RungModel(section.called, model, variant, outputs, True, needs_kernels=needs)
    if model.is_compiled:
        raise ConfigError(
            f"{model.name} is an engine, which has no rung of kind '{section.kind}'.",
            hint="Name its package as a rung: {kind: package, path: ...}.",
        )
    if section.kind == "functions":
        off = replace(variant, kernels="off")
        return RungModel(section.called, model, off, outputs, same_answers=True)
    dense = _dense(model.made_from(None), setting.scratch / section.called)
    return RungModel(section.called, dense, variant, outputs, same_answers=True)


def open_at_start(rung: Rung) -> MoHDeployError | None:
    """Open a rung, and return why it cannot be."""
    try:
        rung.open()
    except MoHDeployError as error:
        return error
    return None


def _dense(package: OnnxPackage, output: Path) -> Deployed:
    layers = package.manifest.layers
    if not any(map(choices_for, layers)):
        raise ConfigError(
            f"{package.root} has no layer that could be dense.", hint="Leave the rung out."
        )
    return opened_package(write_choices(package, with_choices(layers, {"all": "dense"}), output))
