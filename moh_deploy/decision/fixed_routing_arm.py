"""A package without its routers, as an arm: what they computed is fed, so their time is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx

from moh_deploy.errors import ConfigError
from moh_deploy.graph.fixed_routing import fix_routing, fixed_input, routed_values, why_not_fixed
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.base import AS_IT_IS, Description, Model, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array


def why_not_fed(package: OnnxPackage) -> str | None:
    """Return why a package cannot run without its routers; None if it can."""
    return why_not_fixed(_graph(package), package.manifest.layers)


@dataclass(frozen=True)
class FixedRoutingModel(Model):
    """A package that is fed what its own routers compute.

    Attributes:
        package: The package.
    """

    package: OnnxPackage

    @property
    def name(self) -> str:
        return f"package {self.package.root}, routing fed"

    def open(self, variant: Variant = AS_IT_IS) -> FixedRoutingRunner:
        """Open it twice: with its routers, and without.

        Raises:
            ConfigError: Attention does not compute with what is fed, or nothing was recorded.
            BackendError: The runtime failed.
        """
        why = why_not_fed(self.package)
        if why is not None:
            raise ConfigError(f"routing cannot be fed to {self.package.root}: {why}.")
        if not self.package.vectors:
            raise ConfigError(f"{self.package.root} holds no recorded run to route.")
        # The nodes that are gone run on no kernel, which is not to be refused.
        kernels = "auto" if variant.kernels == "require" else variant.kernels
        variant = replace(variant, kernels=kernels)
        names = routed_values(_graph(self.package), self.package.manifest.layers)
        routing = open_runner(self.package, variant.returning(names))
        # The edit needs dtype and rank only, which are the same in all runs.
        found = routing.run(self.package.vectors[0].inputs)
        edit = partial(fix_routing, routed={name: found[name] for name in names})
        fixed = open_runner(self.package, variant.edited(edit))
        inputs = self.package.manifest.inputs
        return FixedRoutingRunner(routing, fixed, tuple(names), inputs, fixed.outputs)

    def alone(self, variant: Variant) -> None:
        return None  # What is fed exists in this process only.


@dataclass(frozen=True)
class FixedRoutingRunner(Runner):
    """Routes first, and runs without routers then.

    Attributes:
        routing: The package with its routers.
        fixed: The same without.
        names: Of what is fed.
    """

    routing: Runner
    fixed: Runner
    names: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.fixed.run(self._fed(inputs))

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call without routers; they run once, before."""
        return self.fixed.bound(self._fed(inputs))

    def describe(self) -> Description:
        return self.fixed.describe()

    def close(self) -> None:
        self.routing.close()
        self.fixed.close()

    def _fed(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = self.routing.run(inputs)
        kept = {spec.name for spec in self.fixed.inputs}
        fed = {fixed_input(name): found[name] for name in self.names}
        # An input that nothing but routers read may be gone with them.
        return {name: array for name, array in {**inputs, **fed}.items() if name in kept}


def _graph(package: OnnxPackage) -> onnx.GraphProto:
    return onnx.load(package.model_path, load_external_data=False).graph
