"""Models of any kind that take part in a benchmark, and run on the same inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx

from moh_deploy.errors import ConfigError
from moh_deploy.graph.forced_gates import fix_routing, fixed_input, routed_values, why_not_fixed
from moh_deploy.package import LayerInfo, OnnxPackage, TensorInfo
from moh_deploy.perf.timing import TimeDifference
from moh_deploy.runtime.base import Deployed, Model, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean, shortened
from moh_deploy.validate.compare.tolerances import rules_of
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.user_vectors import match_inputs


@dataclass(frozen=True)
class LoadedCandidate:
    """A loaded model. Inputs are named as those of the first package, and in that order."""

    name: str  # what reports and gates call it
    runner: Runner  # what runs, open until the benchmark is over
    # The rules of `TOLERANCES` for what it computes in, that of its outputs left out.
    precisions: tuple[str, ...]
    # By the `id` of a set of inputs: what is fed besides, by its own names; nothing for a candidate
    # that takes the inputs alone.
    routed: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)
    alone: tuple[Model, Variant] | None = None  # what a process of its own opens; None if none can

    def outputs(self, input_set: InputSet) -> list[Array]:
        """Run it once and return its outputs, in order.

        Raises:
            ConfigError: It does not take these inputs.
            BackendError: The runtime failed.
        """
        found = self.runner.run(self._feeds(input_set))
        return [found[name] for name in self.runner.outputs]

    def bound(self, input_set: InputSet) -> Callable[[], object]:
        """Return a call that runs it on these inputs: to be timed. Raises as `outputs` does."""
        return self.runner.bound(self._feeds(input_set))

    def _feeds(self, input_set: InputSet) -> dict[str, Array]:
        # By `id`: arrays cannot be hashed, and the benchmark keeps the sets of inputs alive.
        if self.routed:
            return {**input_set.inputs, **self.routed[id(input_set)]}
        return fed_by(input_set, self.runner.inputs, self.name)


@dataclass(frozen=True)
class Candidate:
    """A model that is measured, not loaded."""

    name: str  # what reports and gates call it
    is_baseline: bool  # it is there to be compared with
    model: Model  # what runs
    variant: Variant  # the way in which it is opened

    def load(self, sets: Sequence[InputSet]) -> LoadedCandidate:
        """Load it, to be run on these inputs.

        Raises:
            BackendError, PackageError: See `Model.open`.
        """
        runner = self.model.open(self.variant)
        # A model of somebody else has no manifest: it is held to the rule of its outputs' dtype
        # alone.
        precisions: tuple[str, ...] = ()
        if isinstance(self.model, Deployed):
            # The manifest says what the graph computes in, the open runner what its kernels round
            # to.
            precisions = rules_of(self.model.manifest.precision, runner)
        return LoadedCandidate(self.name, runner, precisions, alone=self.model.alone(self.variant))


def fed_by(input_set: InputSet, specs: Sequence[TensorInfo], name: str) -> dict[str, Array]:
    """Return inputs by the names that a candidate has for them.

    Raises:
        ConfigError: It does not take them.
    """
    try:
        # By name, or by position where no name is the same: an ONNX file of somebody else has its
        # own names for the same inputs.
        names = match_inputs([spec.name for spec in specs], list(input_set.inputs), name)
        feeds = {theirs: input_set.inputs[ours] for theirs, ours in names.items()}
        check_inputs(specs, feeds)
    except ConfigError as error:
        raise ConfigError(
            f"{name} does not take the {input_set.name} inputs of the first package:"
            f" {error.message}",
            hint=error.hint,
        ) from error
    return feeds


# Measure what routing costs: a package beside itself without routers, fed what they made.

FIXED = "fixed-routing"


@dataclass(frozen=True)
class FixedRouters:
    """A baseline of the kind `fixed-routing`: which routers it is to do without."""

    name: str  # the baseline: `fixed-routing`, with a colon and a layer's path behind it for one
    layers: tuple[LayerInfo, ...]  # the layers
    layer: str | None  # the path; None for all layers
    why_not: str | None  # why the package cannot run without their routers; None if it can


@dataclass(frozen=True)
class RoutingOverhead:
    """The time that routing takes of a package's, on one set of inputs."""

    contestant: str  # the package
    layer: str | None  # the one layer whose routing was fixed; None for all
    inputs: str  # what it ran on
    sizes: dict[str, int]  # at these sizes
    # Its time minus that with routing fixed; None if that cannot be measured.
    wall_ms: TimeDifference | None
    # The same of CPU time, all threads together, which a busy machine disturbs less.
    cpu_ms: TimeDifference | None
    share: float | None  # the first of the two as a share of its p50
    reason: str | None  # why it cannot be measured


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
    """A package whose routers' results on some inputs are fed to it."""

    package: OnnxPackage  # the package
    layers: tuple[LayerInfo, ...]  # the layers without routers

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
