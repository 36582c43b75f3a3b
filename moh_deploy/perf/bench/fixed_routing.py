"""What routing costs: a package beside itself with what its routers make fed, and no router."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from moh_deploy.errors import ConfigError
from moh_deploy.graph.fixed_routing import fix_routing, fixed_input, routed_values, why_not_fixed
from moh_deploy.package import LayerInfo, OnnxPackage
from moh_deploy.perf.timing import Difference
from moh_deploy.runtime.onnxruntime.session import OrtRunner, open_session, runtime_name
from moh_deploy.runtime.runner import Kernels, KernelUse
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean, shortened
from moh_deploy.validate.input_sets import InputSet
from moh_deploy.validate.tolerances import rules_of

FIXED = "fixed-routing"


@dataclass(frozen=True)
class Fixing:
    """Which routers are to be gone.

    Attributes:
        name: The baseline: `fixed-routing`, with a colon and a layer's path behind it for one.
        layers: The layers.
        layer: The path; None for all layers.
        why_not: Why the package cannot run without their routers; None if it can.
    """

    name: str
    layers: tuple[LayerInfo, ...]
    layer: str | None
    why_not: str | None


@dataclass(frozen=True)
class RoutingOverhead:
    """What routing costs a package on one set of inputs.

    Attributes:
        contestant: The package.
        layer: The one layer whose routing was fixed; None for all.
        inputs: What it ran on.
        sizes: At these sizes.
        wall_ms: Its time minus that with routing fixed; None if that cannot be measured.
        cpu_ms: The same of CPU time, all threads together, which a busy machine disturbs less.
        share: The first of the two as a share of its p50.
        reason: Why it cannot be measured.
    """

    contestant: str
    layer: str | None
    inputs: str
    sizes: dict[str, int]
    wall_ms: Difference | None
    cpu_ms: Difference | None
    share: float | None
    reason: str | None


def fixing(package: OnnxPackage, baseline: str) -> Fixing | None:
    """Return what a baseline fixes; None if it is of another kind.

    Raises:
        ConfigError: There is no such layer.
    """
    kind, colon, path = baseline.partition(":")
    if kind != FIXED:
        return None
    layers = package.manifest.layers
    if not colon:
        return Fixing(baseline, layers, None, why_not_fixed(_graph(package), layers))
    chosen = tuple(layer for layer in layers if layer.path == path)
    if not chosen:
        paths = [layer.path for layer in layers]
        raise ConfigError(
            f"baseline '{baseline}': there is no layer '{path}'.",
            hint=did_you_mean(path, paths) or f"There are {shortened(paths)}.",
        )
    return Fixing(baseline, chosen, path, why_not_fixed(_graph(package), chosen))


@dataclass(frozen=True)
class FixedRouting:
    """A package whose routers' results on some inputs are fed to it.

    Attributes:
        runner: A session without routers.
        routed: For each set of inputs, what its routers made, by the names to feed it.
    """

    package: OnnxPackage
    runner: OrtRunner
    routed: Mapping[int, Mapping[str, Array]]

    @classmethod
    def load(
        cls,
        package: OnnxPackage,
        layers: Sequence[LayerInfo],
        sets: Sequence[InputSet],
        *,
        kernels: Kernels,
        threads: int | None,
    ) -> FixedRouting:
        """Run a package on each set of inputs, and open it without the routers of some layers.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        # The nodes that are gone run on no kernel, which is not to be refused.
        allowed: Kernels = "auto" if kernels == "require" else kernels
        names = routed_values(_graph(package), layers)
        routing = open_session(package, kernels=allowed, threads=threads, extra_outputs=names)
        found = [routing.run(one.inputs) for one in sets]
        runner = open_session(
            package,
            kernels=allowed,
            threads=threads,
            change=lambda graph: fix_routing(graph, {name: found[0][name] for name in names}),
        )
        routed = {
            id(one): {fixed_input(name): values[name] for name in names}
            for one, values in zip(sets, found, strict=True)
        }
        return cls(package, runner, routed)

    @property
    def kernel_use(self) -> KernelUse:
        """See `Contestant.kernel_use`."""
        return self.runner.kernels

    @property
    def runtime(self) -> str:
        """See `Contestant.runtime`."""
        return runtime_name()

    @property
    def precisions(self) -> tuple[str, ...]:
        """See `Contestant.precisions`."""
        return rules_of(self.package.manifest.precision, self.runner)

    def outputs(self, one: InputSet) -> list[Array]:
        """Run once; see `Contestant.outputs`."""
        return list(self.runner.run(self._feeds(one)).values())

    def bound(self, one: InputSet) -> Callable[[], object]:
        """Return a run; see `Contestant.bound`."""
        return self.runner.bound(self._feeds(one))

    def fresh_task(self, inputs: Path) -> None:
        """It has no file that a process could load."""

    def _feeds(self, one: InputSet) -> dict[str, Array]:
        return {**one.inputs, **self.routed[id(one)]}


def _graph(package: OnnxPackage) -> onnx.GraphProto:
    return onnx.load(package.model_path, load_external_data=False).graph
