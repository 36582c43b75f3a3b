"""Measure what routing costs: a package beside itself without routers, fed what they made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx

from moh_deploy.errors import ConfigError
from moh_deploy.graph.fixed_routing import fix_routing, fixed_input, routed_values, why_not_fixed
from moh_deploy.package import LayerInfo, OnnxPackage
from moh_deploy.perf.bench.candidate import Candidate, LoadedCandidate
from moh_deploy.perf.timing import TimeDifference
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.suggest import did_you_mean, shortened
from moh_deploy.validate.compare.tolerances import rules_of
from moh_deploy.validate.reference.input_sets import InputSet

FIXED = "fixed-routing"


@dataclass(frozen=True)
class FixedRouters:
    """A baseline of the kind `fixed-routing`: which routers it is to do without.

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
    """The time that routing takes of a package's, on one set of inputs.

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
    wall_ms: TimeDifference | None
    cpu_ms: TimeDifference | None
    share: float | None
    reason: str | None


def routers_to_fix(package: OnnxPackage, baseline: str) -> FixedRouters | None:
    """Return which routers a baseline named `fixed-routing` fixes; None for other baselines.

    Raises:
        ConfigError: There is no such layer.
    """
    kind, colon, path = baseline.partition(":")
    if kind != FIXED:
        return None
    layers = package.manifest.layers
    # Without a colon all layers are meant.
    if not colon:
        return FixedRouters(baseline, layers, None, why_not_fixed(_graph(package), layers))
    chosen = tuple(layer for layer in layers if layer.path == path)
    if not chosen:
        paths = [layer.path for layer in layers]
        raise ConfigError(
            f"baseline '{baseline}': there is no layer '{path}'.",
            hint=did_you_mean(path, paths) or f"There are {shortened(paths)}.",
        )
    return FixedRouters(baseline, chosen, path, why_not_fixed(_graph(package), chosen))


@dataclass(frozen=True)
class FixedRouting(Candidate):
    """A package whose routers' results on some inputs are fed to it.

    Attributes:
        package: The package.
        layers: The layers without routers.
    """

    package: OnnxPackage
    layers: tuple[LayerInfo, ...]

    def load(self, sets: Sequence[InputSet]) -> LoadedCandidate:
        """Run the package on each set of inputs, and open it without the routers.

        Raises:
            BackendError: The runtime failed.
        """
        # The nodes that are gone run on no kernel, which is not to be refused.
        kernels = "auto" if self.variant.kernels == "require" else self.variant.kernels
        variant = replace(self.variant, kernels=kernels)
        names = routed_values(_graph(self.package), self.layers)
        # The same heads are chosen with and without routers, so that the difference is the routers
        # alone and not the rows of attention.
        with open_runner(self.package, variant.returning(names)) as routing:
            found = [routing.run(input_set.inputs) for input_set in sets]
        # The edit needs dtype and rank only, which are the same in all runs.
        fixed = partial(fix_routing, routed={name: found[0][name] for name in names})
        runner = open_runner(self.package, variant.edited(fixed))
        routed = {
            # Arrays cannot be hashed; the benchmark keeps the sets of inputs alive as long as this.
            id(input_set): {fixed_input(name): values[name] for name in names}
            for input_set, values in zip(sets, found, strict=True)
        }
        rules = rules_of(self.package.manifest.precision, runner)
        return LoadedCandidate(self.name, runner, rules, routed)


def _graph(package: OnnxPackage) -> onnx.GraphProto:
    return onnx.load(package.model_path, load_external_data=False).graph
