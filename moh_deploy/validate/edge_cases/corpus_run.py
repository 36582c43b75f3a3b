"""Run inputs whose routing is near a tie: the package's regression corpus, and those just found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.errors import BackendError
from moh_deploy.package import CorpusSample
from moh_deploy.validate.edge_cases.case_result import MODEL, CaseResult
from moh_deploy.validate.edge_cases.mining import Mined
from moh_deploy.validate.edge_cases.source import Sides
from moh_deploy.validate.parity import compare
from moh_deploy.validate.parity_report import ParityReport
from moh_deploy.validate.reference import corpus_reference, corpus_samples, recorded_from
from moh_deploy.validate.samples import with_valid_tokens

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
        return compare(
            sides.package,
            sides.runner,
            [sample.known for sample in samples],
            labels=[sample.label for sample in samples],
            valid=[sample.valid for sample in samples if sample.valid is not None],
            reference=corpus_reference(kept).name,
            variants=sides.variants,
            policy=sides.policy,
        )


def _compared(report: ParityReport) -> str:
    # Runs with forced routing show the flips of the free run, others those that were excused.
    flips = sum(layer.free_flips or layer.excused_tokens for layer in report.layers)
    chose = f"{flips} tokens chose other heads, explained by their margin" if flips else "no flip"
    return f"{report.vector_sets} samples, max abs error {report.max_abs_error:.3g}, {chose}"
