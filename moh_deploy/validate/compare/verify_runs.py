"""Verify on whole runs: recorded ones, the regression corpus, or files of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from moh_deploy.runtime.base import Description, Runner
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.checks import check_flips, check_stored_weights
from moh_deploy.validate.compare.parity import compare, compare_bodies
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.reference.reference import (
    Answered,
    ExpectedOutputs,
    RecordedReference,
    Reference,
    by_gates,
    corpus_reference,
    corpus_samples,
    expected_outputs,
    made_note,
)
from moh_deploy.validate.reference.references import (
    Against,
    PackageReference,
    function_bodies,
    references,
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
    """The runs to compare.

    Attributes:
        inputs: npz files, or directories of them; empty for the recorded runs.
        vectors: Only the first so many recorded runs; None for all.
        valid_tokens: What says which tokens are valid, as `named_mask` has it; None if all are.
        bodies: Compare function bodies with recorded runs, too, where kernels ran.
    """

    inputs: Sequence[Path]
    vectors: int | None
    valid_tokens: str | None
    bodies: bool = False


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
        answers = [round_.reference.answers(subject.package, round_.samples) for round_ in rounds]
    with progress.step("loading the model"):
        runner = subject.load()
    with progress.step("comparing"), runner:
        pairs = zip(rounds, answers, strict=True)
        reports = [
            with_checks(
                compare_answered(subject, runner, part, round_.samples, policy),
                subject,
                round_.reference,
                policy,
            )
            for round_, got in pairs
            for part in by_gates(round_.reference.name, got)
        ]
        ran = runner.describe()
    del runner  # Two sessions would hold the weights twice.
    bodies = None
    recorded = rounds[0].reference
    if what.bodies and not against and isinstance(recorded, RecordedReference):
        with progress.step("comparing function bodies"):
            bodies = _of_bodies(subject, ran, rounds[0], policy)
    return combined([report.with_token_notes() for report in reports], bodies)


def _of_bodies(
    subject: Subject, ran: Description, recorded: _Round, policy: Policy
) -> ParityReport | None:
    """Compare function bodies with recorded runs; None of an engine, and where no kernel ran."""
    if not subject.has_gates:
        return None
    name, package = recorded.reference.name, subject.package
    report = compare_bodies(
        package, ran, recorded.samples, subject.runtime, reference=name, policy=policy
    )
    if report is None:
        return None
    return replace(report, subject=subject.model.name).with_token_notes()


def with_checks(
    report: ParityReport, subject: Subject, reference: Reference, policy: Policy
) -> ParityReport:
    """Judge stored weights, where the reference is the float32 package, and conditions on flips."""
    checks = check_flips(report.flips, policy.flips)
    if isinstance(reference, PackageReference) and not subject.model.is_compiled:
        weights = check_stored_weights(subject.package, reference.other)
        checks += () if weights is None else (weights,)
    return _with_made_note(replace(report, checks=checks), subject, reference)


def _with_made_note(report: ParityReport, subject: Subject, reference: Reference) -> ParityReport:
    """Say of a package that was made to be another model why it differs from any other."""
    package = subject.package
    is_other = not isinstance(reference, (RecordedReference, ExpectedOutputs)) and not (
        isinstance(reference, PackageReference) and reference.other.root == package.root
    )
    if package.manifest.made is None or report.equal or not is_other:
        return report
    return replace(report, notes=(made_note(package.manifest), *report.notes))


class _Round(NamedTuple):
    """One comparison: with what, and on what."""

    reference: Reference
    samples: tuple[Sample, ...]


def _rounds(subject: Subject, what: WhatToRun, against: Sequence[Against]) -> list[_Round]:
    """Return the comparisons, in the order in which they are asked for."""
    manifest, tokens = subject.package.manifest, what.valid_tokens
    files = read_samples(what.inputs, manifest, tokens)
    if not files:
        sets, words = subject.recorded()
        samples = with_valid_tokens(recorded_samples(sets, what.vectors), manifest, tokens)
        recorded: Reference = RecordedReference(words)
    else:
        samples, recorded = files, expected_outputs(file.file for file in files)
    # What is named replaces the usual reference; the corpus is no part of that.
    if against:
        return [_Round(reference, samples) for reference in references(against, subject, recorded)]
    if not files:
        return [_Round(recorded, samples), *_corpus_round(subject, what)]
    # Each file with what it can be compared with: its own outputs, or else the function bodies.
    known = tuple(file for file in files if file.known.outputs)
    others = tuple(file for file in files if not file.known.outputs)
    rounds = [_Round(expected_outputs(sample.file for sample in known), known)] if known else []
    return [*rounds, *([_Round(function_bodies(subject.package), others)] if others else [])]


def _corpus_round(subject: Subject, what: WhatToRun) -> list[_Round]:
    """Return the comparison with the package's regression corpus; an engine has no gates for it."""
    corpus = subject.package.corpus
    # Who asks for some of the recorded runs wants a short check, without the corpus.
    if not corpus or what.vectors is not None or not subject.has_gates:
        return []
    kept = [sample for sample in corpus if subject.takes(sample.vectors)]
    reference = corpus_reference(corpus)
    words = f"{reference.name}{subject.left_out([sample.vectors for sample in corpus])}"
    manifest = subject.package.manifest
    samples = with_valid_tokens(corpus_samples(kept), manifest, what.valid_tokens)
    return [_Round(replace(reference, name=words), samples)] if samples else []


def compare_answered(
    subject: Subject, runner: Runner, part: Answered, samples: Sequence[Sample], policy: Policy
) -> ParityReport:
    """Compare with what a reference answered to some of the samples."""
    # Samples and answers are matched by their places among all samples.
    answers, own = part.answers, [samples[number] for number in part.numbers]
    report = compare(
        subject.package,
        runner,
        answers.vectors,
        labels=[sample.label for sample in own],
        valid=[sample.valid for sample in own if sample.valid is not None],
        reference=part.reference,
        # Gates on one side only cannot be compared.
        outputs_only=not (answers.has_gates and subject.has_gates),
        variants=subject.variants,
        policy=policy,
    )
    by_order = dict.fromkeys(sample.by_order for sample in own if sample.by_order)
    notes = (*by_order, *answers.notes, *report.notes)
    return replace(report, subject=subject.model.name, notes=notes)
