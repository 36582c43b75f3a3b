"""Compare a runtime with reference values: outputs, chosen heads, gates."""

from collections.abc import Sequence
from dataclasses import replace

from moh_deploy.errors import ValidationError
from moh_deploy.package import Manifest, OnnxPackage, PackageWriter, Proof, Runtime, VectorSet
from moh_deploy.runtime.base import AS_IT_IS, FUNCTION_BODIES, Description, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.validate.compare.judge import ComparedSet, Judge
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.parity_result import count_tokens
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, Policy
from moh_deploy.validate.compare.routing_statistics import joined
from moh_deploy.validate.reference.layer_values import names_to_return
from moh_deploy.validate.reference.reference import RECORDED, Answered, Subject, Variants
from moh_deploy.validate.reference.samples import Sample, recorded_samples, with_valid_tokens
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN, token_view

ON_BODIES = ", on function bodies"
"""Ends the name of a reference that function bodies were compared with."""


def compare(
    package: OnnxPackage,
    runner: Runner,
    vectors: Sequence[VectorSet],
    *,
    reference: str = RECORDED,
    outputs_only: bool = False,
    variants: Variants | None = None,
    policy: Policy = BUILT_IN_POLICY,
) -> ParityReport:
    """Compare with vectors whose valid tokens are those that the package names.

    Arguments are those of `compare_samples`.

    Raises:
        ConfigError: The vectors' inputs do not fit the model.
        BackendError: The runtime failed.
    """
    manifest = package.manifest
    return compare_samples(
        package,
        runner,
        with_valid_tokens(recorded_samples(vectors), manifest, manifest.valid_tokens),
        reference=reference,
        outputs_only=outputs_only,
        variants=variants,
        policy=policy,
    )


def compare_samples(
    package: OnnxPackage,
    runner: Runner,
    samples: Sequence[Sample],
    answers: Sequence[VectorSet] | None = None,
    *,
    reference: str = RECORDED,
    outputs_only: bool = False,
    variants: Variants | None = None,
    policy: Policy = BUILT_IN_POLICY,
) -> ParityReport:
    """Run every sample and compare outputs, chosen heads and gates.

    Args:
        package: Says which outputs and layers there are.
        runner: A session of it that also returns the values `names_to_return(package)`; those that
            it does not return are not compared.
        samples: The inputs to run, their labels in reports, and which of their tokens count.
        answers: The expected values of each; None for those that the samples hold.
        reference: Where the expected values come from, for the report.
        outputs_only: The answers hold no gates, and maybe not every output: compare what they hold.
        variants: Opens the model with gates fed to it. Without, what is behind a flip is judged by
            a looser rule, and half precision by the most that its rule allows.

    Raises:
        ConfigError: The inputs do not fit the model.
        BackendError: The runtime failed.
    """
    expected = [sample.known for sample in samples] if answers is None else answers
    # Scores and fingerprints are fetched only if there is something to compare them with.
    has_inner = not outputs_only and any(known.scores or known.attention for known in expected)
    # Forced routing needs gates to feed, so outputs alone are judged without variants.
    judge = Judge(package, runner, policy, None if outputs_only else variants, has_inner)
    masks = [sample.valid for sample in samples]
    # Without a mask every token counts.
    views = [
        EVERY_TOKEN if mask is None else token_view(mask, package.manifest, known)
        for mask, known in zip(masks, expected, strict=True)
    ]
    cases = [
        ComparedSet(known, sample.label, view)
        for known, sample, view in zip(expected, samples, views, strict=True)
    ]
    judged = [judge.outputs_of(case) if outputs_only else judge.everything(case) for case in cases]
    found = runner.describe()
    notes = [note for view in views for note in view.notes]
    notes += [*(note for report in judged for note in report.notes), *found.notes]
    return ParityReport(
        reference=reference,
        vector_sets=len(samples),
        outputs=tuple(output for report in judged for output in report.outputs),
        layers=tuple(layer for report in judged for layer in report.layers),
        has_routing=not outputs_only,
        kernel_nodes=found.kernel_nodes,
        function_nodes=found.function_nodes,
        layer_runs=found.layer_runs,
        kernels=found.kernels,
        rules=judge.rules,
        policy=policy.source,
        notes=tuple(dict.fromkeys(notes)),
        statistics=joined(report.statistics for report in judged),
        tokens=count_tokens([mask for mask in masks if mask is not None]),
        precision=package.manifest.precision,
    )


def compare_answered(
    subject: Subject, runner: Runner, part: Answered, samples: Sequence[Sample], policy: Policy
) -> ParityReport:
    """Compare with the answers of a reference to some of the samples."""
    # Samples and answers are matched by their places among all samples.
    answers, own = part.answers, [samples[number] for number in part.numbers]
    report = compare_samples(
        subject.package,
        runner,
        own,
        answers.vectors,
        reference=part.reference,
        # Gates on one side only cannot be compared.
        outputs_only=not (answers.has_gates and subject.has_gates),
        variants=subject.variants,
        policy=policy,
    )
    by_order = dict.fromkeys(sample.by_order for sample in own if sample.by_order)
    notes = (*by_order, *answers.notes, *report.notes)
    return replace(report, subject=subject.model.name, notes=notes)


def compare_recorded(
    package: OnnxPackage, variant: Variant = AS_IT_IS, runner: Runner | None = None
) -> ParityReport:
    """Compare a package with the original model, on the recorded runs.

    Nodes that ran on kernels are compared on function bodies too: other machines run those.

    Args:
        variant: The way in which it is opened.
        runner: The package, opened so with `names_to_return(package)`; None opens it here.

    Raises:
        BackendError: The runtime failed.
    """
    opened = runner or open_runner(package, variant.returning(names_to_return(package)))
    # Flips and half precision are judged on variants that are opened in the same way.
    variants, tokens = PackageVariants(package, variant), package.manifest.valid_tokens
    samples = with_valid_tokens(recorded_samples(package.vectors), package.manifest, tokens)
    found, ran = compare_samples(package, opened, samples, variants=variants), opened.describe()
    del opened  # Two sessions would hold the weights twice.
    # What rounding every result changes was asked of kernels and of bodies before.
    if variant.round_results:
        return found
    return combined([found], compare_bodies(package, ran, samples, variant.runtime))


def compare_bodies(
    package: OnnxPackage,
    ran: Description,
    samples: Sequence[Sample],
    runtime: Runtime,
    *,
    reference: str = RECORDED,
    policy: Policy = BUILT_IN_POLICY,
) -> ParityReport | None:
    """Compare function bodies with recorded runs: other machines run them in place of kernels.

    Args:
        ran: What ran the package. If that was no kernel, the bodies were compared already.
        samples: The runs; one of them is enough, unless kernels round.

    Returns:
        None if no kernel ran.

    Raises:
        BackendError: The runtime failed.
    """
    if not ran.kernel_nodes or not samples:
        return None
    # Kernels that round are held to a wider rule: of the graph, the bodies have to say all.
    rounds = ran.kernels.compute_type == "bfloat16" and package.manifest.precision == "float32"
    # As they are written: to load them takes half the time, and a server tries what it optimised.
    # OpenVINO always optimises.
    bodies = replace(FUNCTION_BODIES, optimize=runtime == "openvino")
    variant = replace(bodies, runtime=runtime, spins=False, apart=True)
    return compare_samples(
        package,
        open_runner(package, variant.returning(names_to_return(package))),
        samples if rounds else [_smallest_telling(samples)],
        reference=reference + ON_BODIES,
        variants=PackageVariants(package, variant),
        policy=policy,
    )


def _smallest_telling(samples: Sequence[Sample]) -> Sample:
    """Return the run of the smallest batch among those that are as long as the example, the first.

    A shorter one is blind to much: the softmax of one key is 1, whatever the scores are.
    """
    # Gates are [B, S, H]: a dimension whose size is B in every run is the batch.
    batches = [len(sample.known.gates[0]) if sample.known.gates else 1 for sample in samples]
    example, runs = samples[0].known.sizes, list(zip(samples, batches, strict=True))
    lengths = [n for n in example if any(sample.known.sizes[n] != batch for sample, batch in runs)]
    long = [
        number
        for number, (sample, batch) in enumerate(runs)
        if batch and all(sample.known.sizes[name] >= example[name] for name in lengths)
    ]
    return samples[min(long, key=lambda number: batches[number], default=0)]


def require_equal(package: OnnxPackage) -> None:
    """Refuse a package that is not its original model: nothing right can be made of it.

    Raises:
        ValidationError: `verify` refuses it.
        BackendError: The runtime failed.
    """
    # Without this, a fault of the package would be put down to what is made of it.
    failure = compare_recorded(package).failure
    if failure is not None:
        raise ValidationError(
            f"{package.root}, the package to start from, is {failure.message}",
            hint="`moh-deploy bisect` finds where it diverges. A package of another version of"
            " moh-deploy, or one that was edited, is to be exported again.",
        )


def publish_if_equal(
    writer: PackageWriter, manifest: Manifest, *, name: str, hint: str | None = None
) -> tuple[OnnxPackage, ParityReport]:
    """Publish a package that was made of another, with its proof, if it computes what it recorded.

    Raises:
        ValidationError: It is not. Nothing is published.
        BackendError: The runtime failed.
    """
    # Opened from disk: compared is what was written, not what was meant to be.
    staged = OnnxPackage.open(writer.root, staged=True)
    parity = compare_recorded(staged)
    if parity.failure is not None:
        raise ValidationError(f"{name} is {parity.failure.message}", hint=hint)
    return writer.publish(replace(manifest, proof=proof_of(parity, staged))), parity


def proof_of(parity: ParityReport, package: OnnxPackage) -> Proof:
    """Make the proof for a manifest from a comparison with all recorded runs of a package."""
    sizes = tuple(vector_set.sizes for vector_set in package.vectors)
    return Proof(parity.max_abs_error, parity.routing_agreement or 0.0, sizes)
