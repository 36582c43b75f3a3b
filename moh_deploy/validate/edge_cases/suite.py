"""Run all edge cases of one package."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.table_lookups import SizeQuestion, size_questions
from moh_deploy.package import CorpusSample, VectorSet
from moh_deploy.package.graph_nodes import operator_text
from moh_deploy.runtime.base import GraphEdit, Runner
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.parity import compare_samples
from moh_deploy.validate.compare.tolerances import coarsest, rule_name
from moh_deploy.validate.edge_cases import source
from moh_deploy.validate.edge_cases.input_run import InputJudge, first_difference
from moh_deploy.validate.edge_cases.mining import Mined
from moh_deploy.validate.edge_cases.other_sizes import SAMPLES, TOKENS, run_samples, run_tokens
from moh_deploy.validate.edge_cases.routing_judge import values_mismatch
from moh_deploy.validate.edge_cases.routing_run import run_routing_states
from moh_deploy.validate.edge_cases.source import InputState
from moh_deploy.validate.reference.input_sets import sized_inputs
from moh_deploy.validate.reference.reference import corpus_reference, corpus_samples, recorded_from
from moh_deploy.validate.reference.samples import with_valid_tokens

# Ask a model that treats one size of its inputs apart what it makes there if it does not.
#
# No model that was written for every size asks whether it is just one, and computes something else.

SIZES_CASE = "one size apart"

_LONGEST = 4096


@dataclass(frozen=True)
class _Answered(source.Source):
    """A model that is given the answer to a question on its sizes as an input."""

    question: SizeQuestion  # the question
    usual: Array  # the answer, at the example's sizes

    @property
    def answers(self) -> dict[str, Array]:
        return {self.question.value: np.asarray(self.usual)}

    def open(self, extra_outputs: Sequence[str] = (), edit: GraphEdit | None = None) -> Runner:
        variant = self.variant.edited(source.feeding(self.answers, extra_outputs))
        return source.Source(self.package, variant).open(extra_outputs, edit)


def run_single_sizes(sides: source.Sides) -> Iterator[source.CaseResult]:
    """Yield a result for each size that an operator asks for.

    Args:
        sides: The package, which has recorded inputs, from which others are drawn.
    """
    package, bodies = sides.package, sides.reference
    for question in size_questions(sides.graph):
        # The value of the comparison itself shows at which sizes the answer is another one.
        runner = bodies.open([question.value])
        usual = runner.run(package.vectors[0].inputs)[question.value]
        answered = _Answered(bodies.package, bodies.variant, question, usual)
        for dim in package.manifest.dims:
            # Of the example's own size, every other one is asked for.
            for size in sorted({number + more for number in question.sizes for more in (0, 1)}):
                try:
                    (given,) = sized_inputs(package, {dim: [min(size, _LONGEST)]})
                    got = runner.run(given.inputs)
                except (BackendError, ConfigError):
                    continue  # The model does not take that size.
                answer = got[question.value]
                # Only a changed answer can make a difference, and most questions stay unchanged.
                if usual.shape == answer.shape and (usual != answer).any():
                    case = f"{SIZES_CASE}: {dim}={size}"
                    yield _at_size(sides, answered, case, given.inputs, got)


def _at_size(
    sides: source.Sides,
    answered: _Answered,
    case: str,
    inputs: dict[str, Array],
    got: Mapping[str, Array],
) -> source.CaseResult:
    """Compare what the model makes with what it makes if it has the usual answer."""
    # The same model with the usual answer put in: what it makes then is what was meant.
    known = {**inputs, **source.fixed_values(answered.answers)}
    try:
        expected = answered.open().run(known)
    except BackendError as error:
        return source.input_result(case, "not applicable", error.message)
    what = operator_text(answered.question.node)
    manifest = sides.package.manifest
    view = sides.view(VectorSet({}, inputs, dict(expected), (), ()))
    for spec in manifest.outputs:
        rule = coarsest(*map(sides.policy.rule, (spec.dtype, rule_name(manifest.precision))))
        name, reference = f"output '{spec.name}'", expected[spec.name]
        places = view.places(spec.name, reference.shape)
        problem = values_mismatch(name, got[spec.name], reference, rule, places)
        if problem is not None:
            # The model as it is against itself with the usual answer, at the same inputs.
            looked = replace(sides, subject=sides.reference, reference=answered)
            place = first_difference(looked, known, inputs)
            where = "" if place is None else f" {place}"
            why = f"case '{case}': {what} lets the model compute something else there: {problem}"
            return source.input_result(case, "failed", f"{why}{where}")
    return source.input_result(
        case, "passed", f"{what} asks for it, and nothing depends on the answer"
    )


# Run inputs whose routing is near a tie: the package's regression corpus, and those just found.

KEPT, FOUND = "regression corpus", "least clear inputs"


def run_kept(sides: source.Sides) -> source.CaseResult:
    """Run the regression corpus of the package."""
    if sides.package.corpus:
        return _run_corpus(sides, KEPT, sides.package.corpus)
    why = "the package holds none: --inputs FILE.npz --update-corpus makes one."
    return source.CaseResult("corpus", KEPT, source.MODEL, "not applicable", why)


def run_found(sides: source.Sides, mined: Mined) -> source.CaseResult:
    """Run what a search of inputs found."""
    if mined.samples:
        return _run_corpus(sides, FOUND, mined.samples)
    # Nothing but NaN is a finding, and not a model without choices: `probe` must not pass on it.
    if not mined.tokens and mined.nan_choices:
        why = "there is nothing to search in these inputs: they give nothing but NaN scores."
        return source.CaseResult("corpus", FOUND, source.MODEL, "not run", why)
    why = "no layer whose margins are known chose anything in these inputs."
    return source.CaseResult("corpus", FOUND, source.MODEL, "not applicable", why)


def _run_corpus(sides: source.Sides, case: str, kept: Sequence[CorpusSample]) -> source.CaseResult:
    manifest = sides.package.manifest
    samples = with_valid_tokens(corpus_samples(kept), manifest, sides.valid_tokens)
    try:
        report = compare_samples(
            sides.package,
            sides.runner,
            samples,
            reference=corpus_reference(kept).name,
            variants=sides.variants,
            policy=sides.policy,
        )
    except BackendError as error:
        return source.CaseResult(
            "corpus", case, source.MODEL, "failed", f"case '{case}': {error.message}"
        )
    if report.reasons:
        # The first reason stands for all: a fault near the input shows in everything behind it.
        more = f" ({len(report.reasons) - 1} more)" if len(report.reasons) > 1 else ""
        where = "".join(f" {note}" for note in report.notes)
        sentence = f"case '{case}': {report.reasons[0]}{more}{where}"
        return source.CaseResult("corpus", case, source.MODEL, "failed", sentence)
    # Runs with forced routing show the flips of the free run, others those that were excused.
    flips = sum(layer.free_flips or layer.excused_tokens for layer in report.layers)
    chose = f"{flips} tokens chose other heads, explained by their margin" if flips else "no flip"
    compared = f"{report.vector_sets} samples, max abs error {report.max_abs_error:.3g}, {chose}"
    detail = f"{compared}; recorded from {recorded_from(kept)}"
    return source.CaseResult("corpus", case, source.MODEL, "passed", detail)


@dataclass(frozen=True)
class Suite:
    """Every case of a package."""

    sides: source.Sides  # what is compared
    states: Sequence[InputState]  # the input states

    def run(self, progress: Progress, found: Mined | None = None) -> list[source.CaseResult]:
        """Run all cases of the suite.

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
            with progress.step(f"inputs: {SAMPLES}"):
                results.append(run_samples(judge))
            with progress.step(f"inputs: {TOKENS}"):
                results += run_tokens(judge)
            with progress.step(f"inputs: {SIZES_CASE}"):
                results += run_single_sizes(sides)
        with progress.step(f"inputs: {KEPT}"):
            results.append(run_kept(sides))
        # There is a search only where the user gave inputs.
        if found is not None:
            with progress.step(f"inputs: {FOUND}"):
                results.append(run_found(sides, found))
        return results
