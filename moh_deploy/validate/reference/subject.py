"""The subject of `verify`: a package as it runs here, or an engine with its package."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moh_deploy.errors import ConfigError
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.package import OnnxPackage, Runtime, VectorSet
from moh_deploy.runtime.base import Deployed, Runner, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.runtime.variants import Noise, PackageVariants
from moh_deploy.validate.reference.layer_values import names_to_return
from moh_deploy.validate.reference.reference import recorded_words
from moh_deploy.validate.reference.samples import label

# The variants of a model that tell errors of kernels, errors of routers, and rounding apart.


class Variants(Protocol):
    """Opens variants of a model in which the gates of each layer are inputs.

    They are fed as `forced_gates(name)`; the routers' own are returned as `computed_gates(name)`.
    """

    def why_not_forced(self) -> str | None:
        """Return why the gates cannot be fed; None if they can."""

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        """Open the model as it is judged.

        Args:
            gates: Name of each layer's gates to their dtype.
            inner: Names of inner values to return besides.
        """

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        """Open the model with something that rounding moves.

        Returns:
            None if the model has nothing that could move so.
        """


@dataclass(frozen=True)
class Subject:
    """A package or an engine, read and not loaded."""

    model: Deployed
    # The package, or the one that the engine was built from, of the engine's precision.
    package: OnnxPackage
    kernels: Kernels
    runtime: Runtime = "onnxruntime"

    @property
    def has_gates(self) -> bool:
        """Whether it returns the gates of its layers, which an engine does not."""
        return not self.model.is_compiled

    @property
    def variants(self) -> Variants | None:
        """The variants that can be opened of it; None for an engine."""
        # An engine's graph is fixed: gates cannot be made inputs of it any more.
        if self.model.is_compiled:
            return None
        return PackageVariants(self.package, self._variant)

    @property
    def _variant(self) -> Variant:
        # Nothing is timed, so threads may sleep between operators.
        return Variant(runtime=self.runtime, kernels=self.kernels, spins=False, apart=True)

    def recorded(self) -> tuple[tuple[VectorSet, ...], str]:
        """Return the recorded runs that it can repeat, and what they are in words.

        Raises:
            ConfigError: There is none.
        """
        words = recorded_words(self.package.manifest)
        found = tuple(filter(self.takes, self.package.vectors))
        if not found and self.model.is_compiled:
            raise ConfigError(
                f"no recorded run of the package is of sizes that {self.model.root} was built for.",
                hint="Build it with a --profile that has the example's sizes, or give --inputs.",
            )
        if not found and self.package.vectors:
            raise ConfigError(
                f"every recorded run of {self.model.root} has an empty axis, which OpenVINO does"
                " not run.",
                hint="Give --inputs, or --runtime onnxruntime.",
            )
        return found, f"{words}{self.left_out(self.package.vectors)}"

    def takes(self, run: VectorSet) -> bool:
        """Tell whether it can repeat a recorded run: an engine within its profile, OpenVINO
        without an empty axis."""
        if self.model.is_compiled:
            return self.model.fits(run.sizes)
        return self.runtime != "openvino" or all(array.size for array in run.inputs.values())

    def left_out(self, runs: Sequence[VectorSet]) -> str:
        """Return what reports say of the runs that it does not take; empty if it takes all."""
        if self.model.is_compiled:
            return ", those of sizes that the engine was built for"
        sizes = [label("", run.sizes).strip() for run in runs if not self.takes(run)]
        return f", not run in OpenVINO for an empty axis: {', '.join(sizes)}" if sizes else ""

    def load(self) -> Runner:
        """Load it, so that it also returns what can be compared of its layers.

        Raises:
            BackendError: The runtime failed, or the engine cannot run here.
        """
        # Inner values are asked for at once: a second session would take the model's memory again.
        variant = self._variant
        if self.model.is_compiled:
            return self.model.open(variant)
        # The package as it was read: one that is still being written cannot be read by its path.
        return open_runner(self.package, variant.returning(names_to_return(self.package)))


def read_subject(
    root: Path,
    package: Path | None,
    kernels: Kernels,
    runtime: Runtime | None = None,
    *,
    staged: bool = False,
) -> Subject:
    """Read a package, or an engine and its package.

    Raises:
        PackageError: It is neither, or has changed since it was written.
        ConfigError: `package` is given for a package, or not the one that the engine was built
            from.
        BackendError: The runtime that the package was tuned for is not installed.
    """
    model = find_deployed(root)
    made_from = model.made_from(package, staged=staged)
    # Of a package that is still being written, the path is not yet one.
    preferred = made_from.manifest.runtime if not model.is_compiled else None
    return Subject(model, made_from, kernels, runtime_for(runtime, preferred))
