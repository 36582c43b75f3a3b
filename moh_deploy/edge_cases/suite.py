"""All edge cases of one package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moh_deploy.backends.runner import Runner
from moh_deploy.edge_cases.case_result import CaseResult
from moh_deploy.edge_cases.corpus_run import run_corpus
from moh_deploy.edge_cases.input_run import InputJudge
from moh_deploy.edge_cases.input_states import InputState, input_states
from moh_deploy.edge_cases.routing_run import run_routing_states
from moh_deploy.edge_cases.source import Source
from moh_deploy.package import OnnxPackage
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
class SuiteOptions:
    """What the user knows of the model.

    Attributes:
        longest: Dimension to the size that counts as its longest.
        valid_tokens: The input that says which tokens are no padding.
        policy: What counts as equal.
    """

    longest: Mapping[str, int] = field(default_factory=dict)
    valid_tokens: str | None = None
    policy: Policy = BUILT_IN_POLICY


def run_suite(
    package: OnnxPackage, sides: Sides, options: SuiteOptions, progress: Progress
) -> list[CaseResult]:
    """Run every case.

    Raises:
        ConfigError: An option does not fit the model.
        BackendError: A variant of the model cannot be loaded.
    """
    states = list(input_states(package, options.longest, options.valid_tokens))
    results = run_routing_states(package, sides.subject, sides.reference, options.policy, progress)
    results += _run_states(package, sides, options.policy, states, progress)
    with progress.step("regression corpus"):
        results.append(
            run_corpus(package, sides.runner, sides.variants, options.policy, options.valid_tokens)
        )
    return results


def _run_states(
    package: OnnxPackage,
    sides: Sides,
    policy: Policy,
    states: list[InputState],
    progress: Progress,
) -> list[CaseResult]:
    judge = InputJudge(package, sides.runner, sides.recorder, sides.variants, policy)
    results = []
    for state in states:
        with progress.step(f"inputs: {state.case}"):
            results.append(judge.judge(state))
    return results
