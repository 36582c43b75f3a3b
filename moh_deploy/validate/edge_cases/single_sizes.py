"""Ask a model that treats one size of its inputs apart what it makes there if it does not.

No model that was written for every size asks whether it is just one, and computes something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.size_questions import SizeQuestion, size_questions
from moh_deploy.package import VectorSet
from moh_deploy.package.router_nodes import operator_text
from moh_deploy.runtime.base import GraphEdit, Runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.edge_cases.case_result import CaseResult, input_result
from moh_deploy.validate.edge_cases.first_difference import FirstDifference, whole
from moh_deploy.validate.edge_cases.routing_judge import values_mismatch
from moh_deploy.validate.edge_cases.source import Sides, Source, feeding, fixed_values
from moh_deploy.validate.input_sets import sized_inputs
from moh_deploy.validate.tolerances import coarsest, rule_name
from moh_deploy.validate.valid_tokens import EVERY_TOKEN, token_view

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
