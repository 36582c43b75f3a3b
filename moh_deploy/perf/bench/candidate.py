"""Models of any kind that take part in a benchmark, and run on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.perf.bench.fresh_run import FreshTask
from moh_deploy.runtime.base import Deployed, Description, Model, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import rules_of
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.matching import match_inputs


@dataclass(frozen=True)
class Candidate:
    """A model that is measured, not loaded.

    Attributes:
        name: What reports and gates call it.
        is_baseline: It is there to be compared with.
        model: What runs.
        variant: The way in which it is opened.
    """

    name: str
    is_baseline: bool
    model: Model
    variant: Variant

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


@dataclass(frozen=True)
class LoadedCandidate:
    """A loaded model. Inputs are named as those of the first package, and in that order.

    Attributes:
        name: What reports and gates call it.
        runner: What runs, open until the benchmark is over.
        precisions: The rules of `TOLERANCES` for what it computes in, that of its outputs left out.
        routed: By the `id` of a set of inputs: what is fed besides, by its own names; nothing for
            a candidate that takes the inputs alone.
        alone: What a process of its own opens; None if none can.
    """

    name: str
    runner: Runner
    precisions: tuple[str, ...]
    routed: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)
    alone: tuple[Model, Variant] | None = None

    def describe(self) -> Description:
        """Return what runs this model and its layers."""
        return self.runner.describe()

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

    def fresh_task(self, inputs: Path) -> FreshTask | None:
        """Return a task that loads it and runs it once in a process of its own.

        Args:
            inputs: npz file to run on.

        Returns:
            None if it exists in this process only.
        """
        return None if self.alone is None else FreshTask(*self.alone, inputs)

    def _feeds(self, input_set: InputSet) -> dict[str, Array]:
        # By `id`: arrays cannot be hashed, and the benchmark keeps the sets of inputs alive.
        if self.routed:
            return {**input_set.inputs, **self.routed[id(input_set)]}
        return fed_by(input_set, self.runner.inputs, self.name)


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
