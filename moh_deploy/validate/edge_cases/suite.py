"""Run all edge cases of one package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.system.progress import Progress
from moh_deploy.validate.edge_cases.case_result import CaseResult
from moh_deploy.validate.edge_cases.corpus_run import FOUND, KEPT, CorpusJudge
from moh_deploy.validate.edge_cases.input_run import InputJudge
from moh_deploy.validate.edge_cases.input_states import InputState
from moh_deploy.validate.edge_cases.mining import Mined
from moh_deploy.validate.edge_cases.other_sizes import SAMPLES, TOKENS, SizeJudge
from moh_deploy.validate.edge_cases.routing_run import run_routing_states
from moh_deploy.validate.edge_cases.single_sizes import SIZES_CASE as ONE_SIZE
from moh_deploy.validate.edge_cases.single_sizes import run_single_sizes
from moh_deploy.validate.edge_cases.source import Sides


@dataclass(frozen=True)
class Suite:
    """Every case of a package.

    Attributes:
        sides: What is compared.
        states: The input states.
    """

    sides: Sides
    states: Sequence[InputState]

    def run(self, progress: Progress, found: Mined | None = None) -> list[CaseResult]:
        """Run them all.

        Args:
            progress: What to report steps to.
            found: What a search of inputs found; None if there was none.

        Raises:
            BackendError: A variant of the model cannot be loaded.
        """
        sides, package = self.sides, self.sides.package
        # Routers first: a fault there shows in every case behind it.
        results = run_routing_states(sides, progress)
        judge = InputJudge.of(sides)
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
                results += run_single_sizes(sides)
        corpus = CorpusJudge(sides)
        with progress.step(f"inputs: {KEPT}"):
            results.append(corpus.kept())
        # There is a search only where the user gave inputs.
        if found is not None:
            with progress.step(f"inputs: {FOUND}"):
                results.append(corpus.found(found))
        return results
