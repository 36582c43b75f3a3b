"""Try a model that was opened on a recorded run, before it serves: the known answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moh_deploy.errors import ValidationError
from moh_deploy.package import LayerRounding, OnnxPackage, Rounding, Spread, TensorInfo
from moh_deploy.package.writer import model_bytes
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.noise_floor import NOISE, STEPS
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.reference.reference import recorded_words

MOST_MEASURED = 256 * 2**20
"""Of a model of more bytes in half precision, int8 or int4 no noise floor is measured: it is held
to the most that its rule allows."""


def require_known_answer(
    model: Deployed, variant: Variant, answering: Runner, reading: Runner | None = None
) -> None:
    """Refuse a model that answers a recorded run wrongly by the rules of `verify`.

    An engine holds no recorded runs, so it is not tried.

    Args:
        model: What was opened.
        variant: In which way. Where a router chose other heads, the model is opened once more, with
            the recorded gates fed to it.
        answering: Computes the answers.
        reading: Returns the gates of all layers, where `answering` does not.

    Raises:
        ValidationError: An output, or a layer, is not as it was recorded.
        BackendError: The runtime failed.
    """
    if model.is_compiled:
        return
    package = model.made_from(None)
    if not package.vectors:
        raise ValidationError(
            f"{model.name} holds no recorded run, so its answers cannot be tried.",
            hint="Export the model again.",
        )
    # The first is that of the example: not of a single token, whose softmax is 1 in any case.
    known = package.vectors[0]
    results = {} if reading is None else reading.run(known.inputs)
    results |= answering.run(known.inputs)
    computed = ComputedResults(results, package.manifest.inputs, answering.describe())
    # Measuring its floor would take more memory than serving it.
    is_large = package.manifest.precision in NOISE and model_bytes(package) > MOST_MEASURED
    variants = PackageVariants(package, replace(variant, extra_outputs=()))
    # A floor only widens what is allowed: what passes without one needs no sessions to measure it.
    ways = [_without_noise(package)] if package.manifest.precision in STEPS else []
    for judged in (*ways, package):
        report = compare(
            judged,
            computed,
            [known],
            reference=recorded_words(package.manifest),
            variants=None if is_large else variants,
        )
        # A tie that cannot be told from an error is no wrong answer: `verify` has all runs.
        if report.answer != "NOT EQUAL":
            return
    library = report.kernels.library
    hint = f"`moh-deploy verify {model.root}` compares all recorded runs."
    if library is not None:
        hint = (
            f"If `moh-deploy verify {model.root} --kernels off` passes, the kernel library"
            f" {library} is at fault: copy or install it again."
        )
    raise ValidationError(
        f"{model.name} answers a recorded run wrongly, so it is not served: {report.reasons[0]}",
        hint=hint,
    )


def _without_noise(package: OnnxPackage) -> OnnxPackage:
    """Return a package of half precision as one that rounding moves by two steps at most."""
    still = Spread(0.0, 0.0)
    rounding = Rounding(
        dict.fromkeys((output.name for output in package.manifest.outputs), still),
        tuple(LayerRounding(still, still, still) for _ in package.manifest.layers),
    )
    return replace(package, manifest=replace(package.manifest, rounding=rounding))


@dataclass(frozen=True)
class ComputedResults(Runner):
    """Results that were computed before, as a runner for `compare`.

    Attributes:
        results: Outputs, gates, and as many other inner values as there are.
        description: Of what computed them.
    """

    results: Mapping[str, Array]
    inputs: tuple[TensorInfo, ...]
    description: Description

    @property
    def outputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.results)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(self.results)

    def describe(self) -> Description:
        return self.description
