"""Verify on whole runs: recorded ones, the regression corpus, or files of inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.checks import check_flips, check_stored_weights
from moh_deploy.validate.compare.parity import compare_answered, compare_bodies
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.reference.reference import (
    ExpectedOutputs,
    RecordedReference,
    Reference,
    by_gates,
    corpus_reference,
    corpus_samples,
    made_note,
)
from moh_deploy.validate.reference.references import (
    Against,
    PackageReference,
    Round,
    references,
    rounds_of_files,
)
from moh_deploy.validate.reference.samples import (
    Sample,
    read_samples,
    recorded_samples,
    with_valid_tokens,
)
from moh_deploy.validate.reference.subject import Subject


@dataclass(frozen=True)
class WhatToRun:
    """The runs to compare."""

    inputs: Sequence[Path]  # npz files, or directories of them; empty for the recorded runs
    vectors: int | None  # Only the first so many recorded runs; None for all
    # What says which tokens are valid, as `named_mask` has it; None if all are.
    valid_tokens: str | None
    bodies: bool = False  # Compare function bodies with recorded runs, too, where kernels ran


def verify_runs(
    subject: Subject,
    what: WhatToRun,
    *,
    against: Sequence[Against],
    policy: Policy,
    progress: Progress,
) -> ParityReport:
    """Compare outputs and gates with one reference or several.

    Raises:
        ConfigError: Inputs do not fit the model, or `against` names nothing to compare with.
        BackendError: The runtime failed.
    """
    with progress.step("reading inputs"):
        rounds = _rounds(subject, what, against)
    # References first: two models at once would need the memory of both.
    with progress.step("running the references"):
        answers = [reference.answers(subject.package, samples) for reference, samples in rounds]
    with progress.step("loading the model"):
        runner = subject.load()
    reports = []
    with progress.step("comparing"), runner:
        for (reference, samples), answered in zip(rounds, answers, strict=True):
            for part in by_gates(reference.name, answered):
                report = compare_answered(subject, runner, part, samples, policy)
                reports.append(with_checks(report, subject, reference, policy))
        ran = runner.describe()
    del runner  # Two sessions would hold the weights twice.
    bodies, (recorded, samples) = None, rounds[0]
    may_compare = what.bodies and subject.has_gates and not against
    if may_compare and isinstance(recorded, RecordedReference):
        with progress.step("comparing function bodies"):
            bodies = compare_bodies(
                subject.package,
                ran,
                samples,
                subject.runtime,
                reference=recorded.name,
                policy=policy,
            )
    if bodies is not None:
        bodies = replace(bodies, subject=subject.model.name).with_token_notes()
    return combined([report.with_token_notes() for report in reports], bodies)


def _rounds(subject: Subject, what: WhatToRun, against: Sequence[Against]) -> list[Round[Sample]]:
    """Return the comparisons, in the order in which they are asked for."""
    package, manifest = subject.package, subject.package.manifest
    tokens = what.valid_tokens
    files = read_samples(what.inputs, manifest, tokens)
    if files:
        return rounds_of_files(files, subject, against)
    sets, words = subject.recorded()
    samples = recorded_samples(sets, what.vectors)
    samples = with_valid_tokens(samples, manifest, tokens)
    recorded = RecordedReference(words)
    # What is named replaces the usual reference; the corpus is no part of that.
    if against:
        return [(reference, samples) for reference in references(against, subject, recorded)]
    # Who asks for some of the recorded runs wants a short check. An engine has no gates to compare.
    corpus = package.corpus if what.vectors is None and subject.has_gates else ()
    kept = [sample for sample in corpus if subject.takes(sample.vectors)]
    if not kept:
        return [(recorded, samples)]
    left_out = subject.left_out([sample.vectors for sample in corpus])
    reference = RecordedReference(f"{corpus_reference(corpus).name}{left_out}")
    others = with_valid_tokens(corpus_samples(kept), manifest, tokens)
    return [(recorded, samples), (reference, others)]


def with_checks(
    report: ParityReport, subject: Subject, reference: Reference, policy: Policy
) -> ParityReport:
    """Judge stored weights, where the reference is the float32 package, and conditions on flips.

    Of a package that was made to be another model, say why it differs from any other.
    """
    package, checks = subject.package, check_flips(report.flips, policy.flips)
    other = reference.other if isinstance(reference, PackageReference) else None
    if other is not None and not subject.model.is_compiled:
        weights = check_stored_weights(package, other)
        checks += () if weights is None else (weights,)
    report = replace(report, checks=checks)
    is_itself = isinstance(reference, (RecordedReference, ExpectedOutputs)) or (
        other is not None and other.root == package.root
    )
    if package.manifest.made is None or report.equal or is_itself:
        return report
    return replace(report, notes=(made_note(package.manifest), *report.notes))
