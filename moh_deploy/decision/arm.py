"""The arms of a comparison: whatever can be run, on the same inputs and with the same outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from moh_deploy.errors import MoHDeployError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.runtime.base import Model, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.matching import match_inputs, match_outputs


@dataclass(frozen=True)
class Arm:
    """An arm of the plan, found and not loaded.

    Attributes:
        name: What the plan calls it.
        kind: What it is, in words.
        model: What runs.
        variant: The way in which it is opened.
        package: Where its routers can be read; None where they cannot.
        dense: It computes every head, whatever routers say.
        chooses: Its routers choose heads; None where that is not known, or it could not be served.
        is_bound: It shows what could be gained, and cannot be served itself.
        elsewhere: Why memory and CPU time cannot be measured here; None if they can.
    """

    name: str
    kind: str
    model: Model
    variant: Variant
    package: OnnxPackage | None = None
    dense: bool = False
    chooses: bool | None = None
    is_bound: bool = False
    elsewhere: str | None = None


@dataclass(frozen=True)
class OpenedArm:
    """A loaded arm, called by the names that the first package has for inputs and outputs.

    Attributes:
        arm: What was opened.
        runner: What runs.
        base: The manifest whose names are used.
    """

    arm: Arm
    runner: Runner
    base: Manifest

    def outputs(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run it once.

        Raises:
            MoHDeployError: It does not take these inputs, the runtime failed, or it returns
                something else than the first package. The message names the arm.
        """
        with named_errors(self.arm.name):
            found = self.runner.run(self._feeds(inputs))
            ours = [output.name for output in self.base.outputs]
            names = match_outputs(list(found), ours, self.arm.kind)
        return {name: found[theirs] for name, theirs in names.items()}

    def bound(self, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """Return a call that runs it on these inputs: to be timed. Raises as `outputs` does."""
        with named_errors(self.arm.name):
            return self.runner.bound(self._feeds(inputs))

    def _feeds(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        specs = self.runner.inputs
        names = match_inputs([spec.name for spec in specs], list(inputs), self.arm.kind)
        feeds = {theirs: inputs[ours] for theirs, ours in names.items()}
        check_inputs(specs, feeds)
        return feeds


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Put the arm in front of errors: of several, a reader has to know which one is wrong."""
    try:
        yield
    except MoHDeployError as error:
        raise type(error)(f"arm '{name}' cannot run: {error.message}", hint=error.hint) from error


def open_arms(arms: Sequence[Arm], base: Manifest, stack: ExitStack) -> dict[str, OpenedArm]:
    """Load all arms; they stay open until the stack is closed.

    Raises:
        MoHDeployError: One cannot be loaded; the message names it.
    """
    opened = {}
    for arm in arms:
        with named_errors(arm.name):
            runner = stack.enter_context(arm.model.open(arm.variant))
        opened[arm.name] = OpenedArm(arm, runner, base)
    return opened


def shapes_of(outputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of outputs: those of all arms are alike."""
    return {name: np.shape(output) for name, output in outputs.items()}
