"""Try a model that was opened on a recorded run, before it serves: the known answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moh_deploy.errors import ValidationError
from moh_deploy.package import TensorInfo, VectorSet
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array
from moh_deploy.validate.parity import compare
from moh_deploy.validate.reference import recorded_words
from moh_deploy.validate.samples import label


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
    # The largest run reaches the most of the kernels' code: one token's softmax is 1 in any case.
    index, known = max(enumerate(package.vectors), key=lambda numbered: _elements(numbered[1]))
    results = answering.run(known.inputs)
    if reading is not None:
        results = {**reading.run(known.inputs), **results}
    report = compare(
        package,
        ComputedResults(results, package.manifest.inputs, answering.describe()),
        [known],
        labels=[label(str(index), known.sizes)],
        reference=recorded_words(package.manifest),
        variants=PackageVariants(package, replace(variant, extra_outputs=())),
    )
    # A tie that cannot be told from an error is no wrong answer: `verify` has all recorded runs.
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


def _elements(run: VectorSet) -> int:
    return sum(array.size for array in run.inputs.values())


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
