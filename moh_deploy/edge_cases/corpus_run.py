"""Run the regression corpus of a package."""

from __future__ import annotations

from moh_deploy.backends.runner import Runner
from moh_deploy.edge_cases.case_result import MODEL, CaseResult
from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage
from moh_deploy.validate.corpus_reference import corpus_reference, corpus_samples
from moh_deploy.validate.parity import compare
from moh_deploy.validate.parity_report import ParityReport
from moh_deploy.validate.policy import Policy
from moh_deploy.validate.samples import with_valid_tokens
from moh_deploy.validate.variants import Variants

CASE = "regression corpus"


def run_corpus(
    package: OnnxPackage,
    subject: Runner,
    variants: Variants | None,
    policy: Policy,
    valid_tokens: str | None = None,
) -> CaseResult:
    """Compare the package with what the corpus recorded.

    Args:
        package: The package.
        subject: A session of it, that also returns the gates.
        variants: Opens it with gates fed to it.
        policy: What counts as equal.
        valid_tokens: The input that is 0 for padding, which is not compared.
    """
    if not package.corpus:
        why = "the package holds none: --inputs FILE.npz --update-corpus makes one."
        return CaseResult("corpus", CASE, MODEL, "not applicable", why)
    try:
        report = _compare(package, subject, variants, policy, valid_tokens)
    except BackendError as error:
        return CaseResult("corpus", CASE, MODEL, "failed", f"case '{CASE}': {error.message}")
    if report.reasons:
        more = f" ({len(report.reasons) - 1} more)" if len(report.reasons) > 1 else ""
        where = "".join(f" {note}" for note in report.notes)
        sentence = f"case '{CASE}': {report.reasons[0]}{more}{where}"
        return CaseResult("corpus", CASE, MODEL, "failed", sentence)
    return CaseResult("corpus", CASE, MODEL, "passed", _compared(report))


def _compare(
    package: OnnxPackage,
    subject: Runner,
    variants: Variants | None,
    policy: Policy,
    valid_tokens: str | None,
) -> ParityReport:
    samples = with_valid_tokens(corpus_samples(package.corpus), package.manifest, valid_tokens)
    return compare(
        package,
        subject,
        [one.known for one in samples],
        labels=[one.label for one in samples],
        valid=[one.valid for one in samples if one.valid is not None],
        reference=corpus_reference(package.corpus).name,
        variants=variants,
        policy=policy,
    )


def _compared(report: ParityReport) -> str:
    flips = sum(one.free_flips or one.excused_tokens for one in report.layers)
    chose = f"{flips} tokens chose other heads, explained by their margin" if flips else "no flip"
    return f"{report.vector_sets} samples, max abs error {report.max_abs_error:.3g}, {chose}"
