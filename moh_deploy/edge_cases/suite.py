"""All edge cases of one package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.backends.runner import Runner
from moh_deploy.edge_cases.case_result import CaseResult
from moh_deploy.edge_cases.corpus_run import FOUND, KEPT, CorpusJudge
from moh_deploy.edge_cases.input_run import InputJudge
from moh_deploy.edge_cases.input_states import InputState
from moh_deploy.edge_cases.routing_run import run_routing_states
from moh_deploy.edge_cases.source import Source
from moh_deploy.package import CorpusSample, OnnxPackage
from moh_deploy.progress import Progress
from moh_deploy.validate.function_bodies import Recorder
from moh_deploy.validate.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.variants import Variants


@dataclass(frozen=True)
class Sides:
    """What is compared.

    Attributes:
        subject: The package as it is to be judged.
        variants: Opens it with gates fed to it.
        runner: A session of the subject that also returns the gates.
        reference: Its function bodies.
        recorder: What records runs of them.
    """

    subject: Source
    variants: Variants
    runner: Runner
    reference: Source
    recorder: Recorder


@dataclass(frozen=True)
class Suite:
    """Every case of a package.

    Attributes:
        package: The package.
        sides: What is compared.
        states: The input states.
        valid_tokens: The input that is 0 for padding; None if nobody named one.
        policy: What counts as equal.
    """

    package: OnnxPackage
    sides: Sides
    states: Sequence[InputState]
    valid_tokens: str | None = None
    policy: Policy = BUILT_IN_POLICY

    def run(
        self, progress: Progress, found: Sequence[CorpusSample] | None = None
    ) -> list[CaseResult]:
        """Run them all.

        Args:
            progress: What to report steps to.
            found: What a search of inputs found; None if there was none.

        Raises:
            BackendError: A variant of the model cannot be loaded.
        """
        sides, policy = self.sides, self.policy
        results = run_routing_states(self.package, sides.subject, sides.reference, policy, progress)
        judge = InputJudge(self.package, sides.runner, sides.recorder, sides.variants, policy)
        for state in self.states:
            with progress.step(f"inputs: {state.case}"):
                results.append(judge.judge(state))
        corpus = CorpusJudge(self.package, sides.runner, sides.variants, policy, self.valid_tokens)
        with progress.step(f"inputs: {KEPT}"):
            results.append(corpus.kept())
        if found is not None:
            with progress.step(f"inputs: {FOUND}"):
                results.append(corpus.found(found))
        return results
