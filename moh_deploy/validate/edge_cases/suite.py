"""Run all edge cases of one package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner
from moh_deploy.system.progress import Progress
from moh_deploy.validate.edge_cases.case_result import CaseResult
from moh_deploy.validate.edge_cases.corpus_run import FOUND, KEPT, CorpusJudge
from moh_deploy.validate.edge_cases.first_difference import FirstDifference
from moh_deploy.validate.edge_cases.input_run import InputJudge
from moh_deploy.validate.edge_cases.input_states import InputState
from moh_deploy.validate.edge_cases.mining import Mined
from moh_deploy.validate.edge_cases.other_sizes import SAMPLES, TOKENS, SizeJudge
from moh_deploy.validate.edge_cases.routed_layer import Routing
from moh_deploy.validate.edge_cases.routing_run import run_routing_states
from moh_deploy.validate.edge_cases.single_sizes import SIZES_CASE as ONE_SIZE
from moh_deploy.validate.edge_cases.single_sizes import run_single_sizes
from moh_deploy.validate.edge_cases.source import Source
from moh_deploy.validate.function_bodies import Recorder
from moh_deploy.validate.layer_values import layer_values, names_to_return
from moh_deploy.validate.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.variants import Variants


@dataclass(frozen=True)
class Sides:
    """The two sides of a probe. Sessions are opened on first use: each has all weights.

    Attributes:
        package: The package.
        subject: The package as it is to be judged.
        variants: Opens it with gates fed to it.
        reference: Its function bodies.
    """

    package: OnnxPackage
    subject: Source
    variants: Variants
    reference: Source

    @cached_property
    def runner(self) -> Runner:
        """A session of the subject that also returns what is compared of its layers."""
        return self.subject.open(names_to_return(self.package))

    @cached_property
    def recorder(self) -> Recorder:
        """The recorder of runs of the function bodies."""
        runner = self.reference.open(names_to_return(self.package))
        return Recorder(self.package, runner, layer_values(self.package))


@dataclass(frozen=True)
class Suite:
    """Every case of a package.

    Attributes:
        sides: What is compared.
        states: The input states.
        valid_tokens: The input that is 0 for padding; None if nobody named one.
        policy: What counts as equal.
    """

    sides: Sides
    states: Sequence[InputState]
    valid_tokens: str | None = None
    policy: Policy = BUILT_IN_POLICY

    def run(self, progress: Progress, found: Mined | None = None) -> list[CaseResult]:
        """Run them all.

        Args:
            progress: What to report steps to.
            found: What a search of inputs found; None if there was none.

        Raises:
            BackendError: A variant of the model cannot be loaded.
        """
        sides, package, policy = self.sides, self.sides.package, self.policy
        routing, sources = Routing.of(package), (sides.subject, sides.reference)
        # Routers first: a fault there shows in every case behind it.
        results = run_routing_states(package, routing, *sources, policy, progress)
        # Says where a case that fails first differs; it runs only then.
        place = FirstDifference(package, routing.routed, *sources, policy)
        judge = InputJudge(package, sides.runner, sides.recorder, sides.variants, policy, place)
        for state in self.states:
            with progress.step(f"inputs: {state.case}"):
                results.append(judge.judge(state))
        # Other sizes are cut from a recorded run, and need a dimension that may change.
        if package.vectors and package.manifest.dims:
            sizes = SizeJudge(judge)
            with progress.step(f"inputs: {SAMPLES}"):
                results.append(sizes.samples())
            with progress.step(f"inputs: {TOKENS}"):
                results += sizes.tokens()
            with progress.step(f"inputs: {ONE_SIZE}"):
                results += run_single_sizes(package, routing, sides.reference, policy)
        corpus = CorpusJudge(package, sides.runner, sides.variants, policy, self.valid_tokens)
        with progress.step(f"inputs: {KEPT}"):
            results.append(corpus.kept())
        # There is a search only where the user gave inputs.
        if found is not None:
            with progress.step(f"inputs: {FOUND}"):
                results.append(corpus.found(found))
        return results
