"""Run all edge cases of one package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.table_lookups import SizeQuestion, size_questions
from moh_deploy.package import CorpusSample, VectorSet
from moh_deploy.package.graph_nodes import operator_text
from moh_deploy.runtime.base import GraphEdit, Runner
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.parity import compare_samples
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.tolerances import coarsest, rule_name
from moh_deploy.validate.edge_cases.input_run import FirstDifference, InputJudge, whole
from moh_deploy.validate.edge_cases.input_states import InputState
from moh_deploy.validate.edge_cases.mining import Mined
from moh_deploy.validate.edge_cases.other_sizes import SAMPLES, TOKENS, SizeJudge
from moh_deploy.validate.edge_cases.routing_judge import values_mismatch
from moh_deploy.validate.edge_cases.routing_run import run_routing_states
from moh_deploy.validate.edge_cases.source import (
    MODEL,
    CaseResult,
    Sides,
    Source,
    feeding,
    fixed_values,
    input_result,
)
from moh_deploy.validate.reference.input_sets import sized_inputs
from moh_deploy.validate.reference.reference import corpus_reference, corpus_samples, recorded_from
from moh_deploy.validate.reference.samples import with_valid_tokens
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN, token_view

# Ask a model that treats one size of its inputs apart what it makes there if it does not.
#
# No model that was written for every size asks whether it is just one, and computes something else.

SIZES_CASE = "one size apart"

_LONGEST = 4096


def run_single_sizes(sides: Sides) -> Iterator[CaseResult]:
    """Yield a result for each size that an operator asks for.

    Args:
        sides: The package, which has recorded inputs, from which others are drawn.
    """
    package = sides.package
    for question in size_questions(sides.routing.graph):
        # The value of the comparison itself shows at which sizes the answer is another one.
        runner = sides.reference.open([question.value])
        usual = runner.run(package.vectors[0].inputs)[question.value]
        for dim in package.manifest.dims:
            # Of the example's own size, every other one is asked for.
            for size in sorted({number + more for number in question.sizes for more in (0, 1)}):
                try:
                    (given,) = sized_inputs(package, {dim: [min(size, _LONGEST)]})
                    got = runner.run(given.inputs)
                except (BackendError, ConfigError):
                    continue  # The model does not take that size.
                answer = got[question.value]
                # Only a changed answer can make a difference, and most questions have none.
                if usual.shape == answer.shape and (usual != answer).any():
                    asked = _Asked(sides, question, usual)
                    yield asked.judged(f"{SIZES_CASE}: {dim}={size}", given.inputs, got)


@dataclass(frozen=True)
class _Asked:
    """One question, and the answer at the example's sizes."""

    sides: Sides
    question: SizeQuestion
    usual: Array

    def judged(self, case: str, inputs: dict[str, Array], got: dict[str, Array]) -> CaseResult:
        """Compare what the model makes with what it makes if it has the usual answer."""
        sides, bodies, manifest = self.sides, self.sides.reference, self.sides.package.manifest
        # The same model with the usual answer put in: what it makes then is what was meant.
        answers = {self.question.value: np.asarray(self.usual)}
        other = _Answered(bodies.package, bodies.variant, answers)
        known = {**inputs, **fixed_values(answers)}
        try:
            expected = other.open().run(known)
        except BackendError as error:
            return input_result(case, "not applicable", error.message)
        what = operator_text(self.question.node)
        made = {spec.name: expected[spec.name] for spec in manifest.outputs}
        run = VectorSet({}, inputs, made, (), ())
        valid = sides.valid(run)
        view = EVERY_TOKEN if valid is None else token_view(valid, manifest, run)
        for spec in manifest.outputs:
            rule = coarsest(*map(sides.policy.rule, (spec.dtype, rule_name(manifest.precision))))
            name, values = f"output '{spec.name}'", (got[spec.name], expected[spec.name])
            places = view.places(spec.name, made[spec.name].shape)
            problem = values_mismatch(name, *values, rule, places)
            if problem is None:
                continue
            # The model as it is against itself with the usual answer, at the same inputs.
            looked = FirstDifference(replace(sides, subject=bodies, reference=other))
            place = looked.sentence(known, inputs, whole)
            where = "" if place is None else f" {place}"
            why = f"case '{case}': {what} lets the model compute something else there: {problem}"
            return input_result(case, "failed", f"{why}{where}")
        detail = f"{what} asks for it, and nothing depends on the answer"
        return input_result(case, "passed", detail)


@dataclass(frozen=True)
class _Answered(Source):
    """A source whose models take the answer to a question as an input."""

    answers: Mapping[str, Array] = field(default_factory=dict)

    def open(self, extra_outputs: Sequence[str] = (), edit: GraphEdit | None = None) -> Runner:
        variant = self.variant.edited(feeding(self.answers, extra_outputs))
        return Source(self.package, variant).open(extra_outputs, edit)


# Run inputs whose routing is near a tie: the package's regression corpus, and those just found.

KEPT, FOUND = "regression corpus", "least clear inputs"


@dataclass(frozen=True)
class CorpusJudge:
    """Compares a package with what was recorded.

    Attributes:
        sides: The package, and how it is run.
    """

    sides: Sides

    def kept(self) -> CaseResult:
        """Run the regression corpus of the package."""
        if not self.sides.package.corpus:
            why = "the package holds none: --inputs FILE.npz --update-corpus makes one."
            return CaseResult("corpus", KEPT, MODEL, "not applicable", why)
        return self._judge(KEPT, self.sides.package.corpus)

    def found(self, mined: Mined) -> CaseResult:
        """Run what a search of inputs found."""
        # Nothing but NaN is a finding, and not a model without choices: `probe` must not pass on
        # it.
        if not mined.tokens and mined.nan_choices:
            why = "there is nothing to search in these inputs: they give nothing but NaN scores."
            return CaseResult("corpus", FOUND, MODEL, "not run", why)
        if not mined.samples:
            why = "no layer whose margins are known chose anything in these inputs."
            return CaseResult("corpus", FOUND, MODEL, "not applicable", why)
        return self._judge(FOUND, mined.samples)

    def _judge(self, case: str, samples: Sequence[CorpusSample]) -> CaseResult:
        try:
            report = self._compare(samples)
        except BackendError as error:
            return CaseResult("corpus", case, MODEL, "failed", f"case '{case}': {error.message}")
        if not report.reasons:
            detail = f"{_compared(report)}; recorded from {recorded_from(samples)}"
            return CaseResult("corpus", case, MODEL, "passed", detail)
        # The first reason stands for all: a fault near the input shows in everything behind it.
        more = f" ({len(report.reasons) - 1} more)" if len(report.reasons) > 1 else ""
        where = "".join(f" {note}" for note in report.notes)
        sentence = f"case '{case}': {report.reasons[0]}{more}{where}"
        return CaseResult("corpus", case, MODEL, "failed", sentence)

    def _compare(self, kept: Sequence[CorpusSample]) -> ParityReport:
        sides, manifest = self.sides, self.sides.package.manifest
        samples = with_valid_tokens(corpus_samples(kept), manifest, self.sides.valid_tokens)
        return compare_samples(
            sides.package,
            sides.runner,
            samples,
            reference=corpus_reference(kept).name,
            variants=sides.variants,
            policy=sides.policy,
        )


def _compared(report: ParityReport) -> str:
    # Runs with forced routing show the flips of the free run, others those that were excused.
    flips = sum(layer.free_flips or layer.excused_tokens for layer in report.layers)
    chose = f"{flips} tokens chose other heads, explained by their margin" if flips else "no flip"
    return f"{report.vector_sets} samples, max abs error {report.max_abs_error:.3g}, {chose}"


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
            with progress.step(f"inputs: {SIZES_CASE}"):
                results += run_single_sizes(sides)
        corpus = CorpusJudge(sides)
        with progress.step(f"inputs: {KEPT}"):
            results.append(corpus.kept())
        # There is a search only where the user gave inputs.
        if found is not None:
            with progress.step(f"inputs: {FOUND}"):
                results.append(corpus.found(found))
        return results
