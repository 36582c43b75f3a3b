"""The runs that tell apart the possible causes of a wrong package: each leaves one thing out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from moh_deploy.graph.float32_form import LOW, float32_form
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.validate.bisection.judge import Recorded, VariantJudge
from moh_deploy.validate.bisection.mixed_precision import Form
from moh_deploy.validate.bisection.places import ForcedModel
from moh_deploy.validate.compare.parity import compare_samples
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.reference.layer_values import Recorder, names_to_return
from moh_deploy.validate.reference.reference import RECORDED
from moh_deploy.validate.reference.samples import Sample, with_valid_tokens


@dataclass
class Experiments:
    """One package and its variants, each run once and compared with the recorded runs."""

    package: OnnxPackage  # what is bisected
    reference: OnnxPackage | None  # a float32 package of the same model; None if none was given
    samples: Sequence[Sample]  # what to run, and what to expect
    policy: Policy  # what counts as equal
    target: float | None  # how far outputs may be off; None for what the policy says
    kernels: Kernels  # what runs MoH nodes of the package
    folder: Path  # a directory for variants of the package
    # The package in float32, if it is known; None to make it.
    form: Form | None = None

    @property
    def precision(self) -> str:
        return self.package.manifest.precision

    @property
    def vectors(self) -> tuple[VectorSet, ...]:
        return tuple(sample.known for sample in self.samples)

    @cached_property
    def parity(self) -> ParityReport:
        """The report of `verify`."""
        return self.compare(self.as_run(self.plain), self.samples)

    @cached_property
    def plain(self) -> ForcedModel:
        """The package, run as it is written: function bodies, without optimisations, every result
        rounded to its dtype."""
        return ForcedModel.of(self.package, self.vectors)

    @cached_property
    def judge(self) -> VariantJudge:
        return VariantJudge(self.plain, self.vectors, self.policy, self.target)

    @cached_property
    def recorded(self) -> tuple[Recorded, ...]:
        """The errors of the package, run as it is written, against the recorded values."""
        return self.judge.judge(self.plain)

    @cached_property
    def recorded_as_run(self) -> tuple[Recorded, ...]:
        """The errors of the package as the runtime runs it."""
        return self.judge.judge(self.as_run(self.plain))

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """Sentences on values that are not equal, or above the target."""
        # `verify` has no target, so a run above the target is looked for beside it.
        found = self.parity.reasons
        if self.target is not None:
            found = (*found, *_reasons(self.recorded_as_run))
        # In half precision both counts: as the runtime runs it, which may round less, and as
        # written.
        return (*found, *_reasons(self.recorded)) if self.is_low else found

    @property
    def cannot_tell(self) -> bool:
        """Nothing is known to be wrong, as far as `verify` and the target can tell."""
        return self.parity.verdict == "cannot tell" and self.reasons == self.parity.reasons

    @property
    def is_low(self) -> bool:
        return self.precision in LOW or self.form is not None

    @cached_property
    def adds_up(self) -> bool:
        """Each recorded value is within its limit once the gates are fed, and the whole is not."""
        return not self.parity.equal and not _reasons(self.recorded_as_run)

    @cached_property
    def float32(self) -> Form | None:
        """The package in float32; None if it is float32, or its origin is unknown."""
        if self.form is not None or not self.is_low:
            return self.form
        # Written once: every experiment without rounding opens it again.
        root = self.folder / "float32"
        root.mkdir()
        return float32_form(self.package, self.reference, root)

    @property
    def believed(self) -> OnnxPackage | None:
        """The package that is trusted to compute the outputs of inputs that were not recorded."""
        return self.reference if self.float32 is None else self.float32.package

    @cached_property
    def unrounded(self) -> ForcedModel:
        """The float32 form, run as it is written: the package itself if it is in float32."""
        if self.float32 is None:
            return self.plain
        return ForcedModel.of(self.float32.package, self.vectors)

    def as_run(self, model: ForcedModel) -> ForcedModel:
        return model.run_as(self.kernels, optimize=True)

    def right(self, model: ForcedModel) -> bool:
        """Tell whether a variant agrees with the recorded values, run in this very way."""
        if _reasons(self.judge.judge(model)):
            return False
        # Where single values agree and only the whole is off, the whole has to be compared.
        return not self.adds_up or self.compare(model, self.samples).equal

    def allowed(self, model: ForcedModel) -> bool:
        """Tell whether a variant is within the policy's tolerances, whatever the target is."""
        return not _reasons(replace(self.judge, target=None).judge(model))

    def sound(self, model: ForcedModel) -> bool:
        """Tell whether a variant is right as written, and, if the package was not, as it is run."""
        as_run_counts = not self.parity.equal or self.target is not None
        return self.right(model) and (not as_run_counts or self.right(self.as_run(model)))

    def compare(self, model: ForcedModel, samples: Sequence[Sample]) -> ParityReport:
        """Compare a variant as `verify` does, on the runtime as it is."""
        # What is emulated in a variant is no part of how it runs.
        variant = replace(model.variant, round_results=False)
        runner = open_runner(model.package, variant.returning(names_to_return(model.package)))
        files = [sample.label for sample in samples if sample.file is not None]
        # What runs are compared with: what was recorded, and what was computed on files.
        sources = [RECORDED] if len(files) < len(samples) else []
        if files:
            by = "the reference" if self.float32 is None else "the same graph in float32"
            sources.append(f"{by} on {', '.join(files)}")
        return compare_samples(
            model.package,
            runner,
            with_valid_tokens(samples, model.package.manifest, model.package.manifest.valid_tokens),
            reference=" and ".join(sources),
            variants=PackageVariants(model.package, Variant(kernels=model.variant.kernels)),
            policy=self.policy,
        )


def _reasons(recorded: Sequence[Recorded]) -> tuple[str, ...]:
    return tuple(point.reason for point in recorded if point.reason is not None)


def answered(believed: OnnxPackage, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return samples with outputs and gates.

    Args:
        believed: In float32; its function bodies are run, without optimisations.
        samples: Inputs of a user's, maybe with expected outputs, which stay.
    """
    if not samples:
        return ()
    recorder = Recorder.of(believed)
    found = []
    for sample in samples:
        known = recorder.record(sample.known.inputs)
        outputs = {**known.outputs, **sample.known.outputs}
        found.append(replace(sample, known=replace(known, outputs=outputs)))
    return tuple(found)
