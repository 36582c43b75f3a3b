"""Compare a package with its recorded runs, on kernels and on function bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moh_deploy.errors import ValidationError
from moh_deploy.package import Manifest, OnnxPackage, PackageWriter, Proof, VectorSet
from moh_deploy.runtime.base import AS_IT_IS, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.validate.layer_values import names_to_return
from moh_deploy.validate.parity import compare
from moh_deploy.validate.parity_report import ParityReport, combined
from moh_deploy.validate.reference import RECORDED
from moh_deploy.validate.samples import label

ON_BODIES = ", on function bodies"
"""What the name of a reference gets that function bodies were compared with."""


def compare_recorded(
    package: OnnxPackage, variant: Variant = AS_IT_IS, runner: Runner | None = None
) -> ParityReport:
    """Compare a package with the original model, on the recorded runs.

    What ran on kernels is compared on function bodies too: other machines run those.

    Args:
        variant: The way in which it is opened.
        runner: The package, opened so with `names_to_return(package)`; None opens it here.

    Raises:
        BackendError: The runtime failed.
    """
    opened = runner or open_runner(package, variant.returning(names_to_return(package)))
    # Flips and half precision are judged on variants that are opened in the same way.
    variants = PackageVariants(package, variant)
    found = compare(package, opened, package.vectors, variants=variants)
    # What rounding every result changes was asked of kernels and of bodies before.
    numbers = () if variant.round_results else body_runs(package, opened, package.vectors)
    del opened  # Two sessions would hold the weights twice.
    if not numbers:
        return found
    variant = replace(variant, kernels="off")
    bodies = compare(
        package,
        open_runner(package, variant.returning(names_to_return(package))),
        [package.vectors[number] for number in numbers],
        labels=[label(str(number), package.vectors[number].sizes) for number in numbers],
        reference=RECORDED + ON_BODIES,
        variants=PackageVariants(package, variant),
    )
    return combined([found], bodies)


def body_runs(package: OnnxPackage, runner: Runner, vectors: Sequence[VectorSet]) -> Sequence[int]:
    """Return the recorded runs to compare function bodies with, by their numbers.

    Args:
        runner: What ran them all. If that was no kernel, the bodies were compared already.
        vectors: The runs.
    """
    found = runner.describe()
    if not found.kernel_nodes or not vectors:
        return ()
    # Kernels that round are held to a wider rule: of the graph, the bodies have to say all.
    if found.kernels.compute_type == "bfloat16" and package.manifest.precision == "float32":
        return range(len(vectors))
    sizes = [sum(array.size for array in one.inputs.values()) for one in vectors]
    # A run without elements would compare nothing.
    return (sizes.index(min(filter(None, sizes), default=0)),)


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

    Args:
        writer: Where it was staged.
        manifest: As it was staged.
        name: The package, in the words of a message.
        hint: What to do where it is not equal.

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
    sizes = tuple(one.sizes for one in package.vectors)
    return Proof(parity.max_abs_error, parity.routing_agreement or 0.0, sizes)
