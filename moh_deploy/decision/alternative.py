"""Load and run the alternatives of a comparison: on the same inputs, with the same outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx

from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.graph.forced_gates import fix_routing, fixed_input, routed_values, why_not_fixed
from moh_deploy.package import Manifest, OnnxPackage, TensorInfo
from moh_deploy.runtime.base import AS_IT_IS, Description, Model, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.drill.targets import V2Client, host_and_port
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.samples import match_inputs, match_outputs


@dataclass(frozen=True)
class Alternative:
    """An alternative of the plan, found and not loaded."""

    name: str  # what the plan calls it
    kind: str  # what it is, in words
    model: Model  # what runs
    variant: Variant  # the way in which it is opened
    package: OnnxPackage | None = None  # where its routers can be read; None where they cannot
    dense: bool = False  # it computes every head, whatever routers say
    # Its routers choose heads; None where that is not known, or it could not be served.
    chooses: bool | None = None
    is_bound: bool = False  # it shows what could be gained, and cannot be served itself
    # Why memory and CPU time cannot be measured here; None if they can.
    elsewhere: str | None = None


@dataclass(frozen=True)
class OpenedAlternative:
    """A loaded alternative, called by the names of inputs and outputs of the first package."""

    alternative: Alternative
    runner: Runner
    base: Manifest  # the manifest whose names are used

    def outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the alternative once and return its outputs.

        Raises:
            MoHDeployError: It does not take these inputs, the runtime failed, or it returns
                something else than the first package. The message names the alternative.
        """
        with named_errors(self.alternative.name):
            found = self.runner.run(self._feeds(inputs))
            ours = [output.name for output in self.base.outputs]
            names = match_outputs(list(found), ours, self.alternative.kind)
        return {name: found[theirs] for name, theirs in names.items()}

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs it on these inputs: to be timed. Raises as `outputs` does."""
        with named_errors(self.alternative.name):
            return self.runner.bound(self._feeds(inputs))

    def _feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        specs = self.runner.inputs
        # Names of other frameworks differ: matched by name, or else by order.
        names = match_inputs([spec.name for spec in specs], list(inputs), self.alternative.kind)
        feeds = {theirs: inputs[ours] for theirs, ours in names.items()}
        check_inputs(specs, feeds)
        return feeds


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Name the alternative in front of the messages of errors."""
    try:
        yield
    except MoHDeployError as error:
        raise type(error)(
            f"alternative '{name}' cannot run: {error.message}", hint=error.hint
        ) from error


def open_alternatives(
    alternatives: Sequence[Alternative], base: Manifest, stack: ExitStack
) -> dict[str, OpenedAlternative]:
    """Load all alternatives; they stay open until the stack is closed.

    Raises:
        MoHDeployError: One cannot be loaded; the message names it.
    """
    opened = {}
    for alternative in alternatives:
        with named_errors(alternative.name):
            runner = stack.enter_context(alternative.model.open(alternative.variant))
        opened[alternative.name] = OpenedAlternative(alternative, runner, base)
    return opened


def shapes_of(outputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of outputs: those of all alternatives are alike."""
    return {name: np.shape(output) for name, output in outputs.items()}


# A package without its routers, as an alternative: what they computed is fed, so their time is
# gone.


def why_not_fed(package: OnnxPackage) -> str | None:
    """Return why a package cannot run without its routers; None if it can."""
    return why_not_fixed(_graph(package), package.manifest.layers)


@dataclass(frozen=True)
class FixedRoutingModel(Model):
    """A package that is fed what its own routers compute."""

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
    """Routes first, and runs without routers then."""

    routing: Runner  # the package with its routers
    fixed: Runner  # the same without
    names: tuple[str, ...]  # of what is fed
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


# A model behind a server that speaks the v2 protocol, as an alternative: what clients really wait
# for.


@dataclass(frozen=True)
class ServerModel(Model):
    """A model on a server that runs already."""

    url: str  # `http://HOST:PORT`
    served_as: str  # what the server calls the model
    base: Manifest  # says what it takes and returns

    @property
    def name(self) -> str:
        return f"model '{self.served_as}' at {self.url}"

    def open(self, variant: Variant = AS_IT_IS) -> ServerRunner:
        """Return a connection of one client.

        Raises:
            ConfigError: The URL is no `http://HOST:PORT`.
        """
        host, port = host_and_port(self.url)
        client = V2Client(host, port, self.served_as, self.base)
        outputs = tuple(info.name for info in self.base.outputs)
        return ServerRunner(self, client, self.base.inputs, outputs)

    def alone(self, variant: Variant) -> None:
        return None  # Loading happened there, before.


@dataclass(frozen=True)
class ServerRunner(Runner):
    """A connection to a server; the time of a run has the way there and back in it."""

    model: ServerModel
    client: V2Client
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self.client(inputs).outputs)

    def describe(self) -> Description:
        return Description(self.model.name, KernelUse(None, "the server does not tell", None))

    def close(self) -> None:
        self.client.close()
