"""Verify on whole runs: recorded ones, the regression corpus, or files of inputs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from moh_deploy.errors import ValidationError
from moh_deploy.package.interface import mask_name
from moh_deploy.runtime.kernel_use import Kernels, KernelUse
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.onnxruntime.session import runtime_name
from moh_deploy.system.isolate import EarlyProcess, isolated, started_early
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.validate.compare.checks import check_flips, check_stored_weights
from moh_deploy.validate.compare.parity import compare_answered, compare_bodies
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.parity_result import TokenCount
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.reference.reference import (
    ExpectedOutputs,
    RecordedReference,
    Reference,
    Subject,
    by_gates,
    corpus_reference,
    corpus_samples,
    made_note,
    read_subject,
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
    only_padding,
    padding_place,
    read_samples,
    recorded_samples,
    with_valid_tokens,
)

# Compare a package with its vectors in a process that knows neither torch nor the user's code.
#
# What is proven there is what a user of the package will see, and the memory of the two worlds does
# not add up.


@dataclass(frozen=True)
class ProvenRun:
    """The agreement of a package with the original model, run in one way."""

    vector_sets: int
    max_abs_error: float  # Largest absolute difference of any output element over all vectors
    routing_agreement: float  # Share of equal (token, head) decisions, near-ties left out
    kernel_nodes: int
    function_nodes: int
    layer_runs: tuple[LayerRun, ...]
    kernels: KernelUse
    # How many were left out, being padding; None if it is not known which are.
    tokens: TokenCount | None


@dataclass(frozen=True)
class Way:
    """One way to run a package."""

    kernels: Kernels
    # Compare with the first so many runs of the original only; None takes all.
    vectors: int | None = None


Prove = Callable[[Path, Sequence[Way]], tuple[ProvenRun, ...]]
"""What `prove` does of a package."""


@contextmanager
def early_prover() -> Iterator[Prove]:
    """Yield `prove`, good for one package, whose process starts at once and imports what it needs.

    Meanwhile the package can be made: the imports take as long as the runs of a small model.
    """
    with started_early(get_ready) as early:
        yield partial(prove, early=early)


def get_ready() -> None:
    """Import what a proof needs that this module does not import itself."""
    runtime_name()


def prove(
    root: Path, ways: Sequence[Way], early: EarlyProcess | None = None
) -> tuple[ProvenRun, ...]:
    """Verify a package in several ways, each as `moh-deploy verify` does.

    One process does them all, since its start and imports cost more than a small model's runs.

    Args:
        root: The package, which may still be staged.
        ways: In this order, until the first that does not agree.
        early: The process to do it in; None starts one.

    Returns:
        How well it agrees, for each way.

    Raises:
        ValidationError: It does not agree.
        MoHDeployError: The comparison failed, with the error of that process.
    """
    # This process has torch and the user's code loaded; the new one imports neither.
    found = isolated(proven, root, tuple(ways), early=early)
    return found.required("the process that compares the package")


def proven(root: Path, ways: Sequence[Way]) -> tuple[ProvenRun, ...]:
    """Verify a package in this process; as `prove` otherwise."""
    # Read once: what it is run by has no part in it.
    package, found = read_subject(root, None, "off", staged=True), []
    for way in ways:
        subject = replace(package, kernels=way.kernels)
        # No files, no other reference, built-in tolerances: `verify` as it is without options.
        what = WhatToRun((), way.vectors, subject.package.manifest.valid_tokens)
        report = _verified(subject, what)
        if report.failure is not None:
            raise _told_apart(report.failure, subject, what)
        assert report.routing_agreement is not None  # It is compared with recorded runs.
        figures = {field.name: getattr(report, field.name) for field in fields(ProvenRun)}
        found.append(ProvenRun(**figures))
    return tuple(found)


@dataclass(frozen=True)
class WhatToRun:
    """The runs to compare."""

    inputs: Sequence[Path]  # npz files, or directories of them; empty for the recorded runs
    vectors: int | None  # Only the first so many recorded runs; None for all
    # What says which tokens are valid, as `named_mask` has it; None if all are.
    valid_tokens: str | None
    bodies: bool = False  # Compare function bodies with recorded runs, too, where kernels ran


def _verified(subject: Subject, what: WhatToRun) -> ParityReport:
    progress = SilentProgress()
    return verify_runs(subject, what, against=(), policy=BUILT_IN_POLICY, progress=progress)


def _told_apart(failure: ValidationError, subject: Subject, what: WhatToRun) -> ValidationError:
    """Return the failure, and say of it whether all that differs lies where a mask is 0."""
    runs = subject.package.vectors[: what.vectors]
    masks = []
    for spec in subject.package.manifest.inputs:
        arrays = [run.inputs[spec.name] for run in runs]
        may_be_mask = all(array.ndim == 2 and np.isin(array, (0, 1)).all() for array in arrays)
        # A mask without padding leaves nothing out.
        masks += [
            mask_name(spec.name, marks_padding=padding)
            for padding in (False, True)
            if may_be_mask and any((array == padding).any() for array in arrays)
        ]
    for name in masks if what.valid_tokens is None else ():
        if _verified(subject, replace(what, valid_tokens=name)).equal:
            where = f"{failure.message} It is so only {padding_place(name)}."
            return ValidationError(where, hint=only_padding([name]).strip())
    return failure


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
