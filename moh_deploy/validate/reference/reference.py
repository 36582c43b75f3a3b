"""The references that a package or engine is compared with, and what they answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from moh_deploy.errors import ConfigError
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.package import CorpusSample, Manifest, OnnxPackage, Runtime, VectorSet
from moh_deploy.runtime.base import Deployed, Runner, Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.runtime.variants import Noise, PackageVariants
from moh_deploy.system.suggest import shortened
from moh_deploy.validate.reference.layer_values import names_to_return
from moh_deploy.validate.reference.samples import Sample, label

RECORDED = "vectors recorded from the original model"


def recorded_words(manifest: Manifest) -> str:
    """Return what recorded the vectors of a package, in words."""
    if manifest.made is None:
        return RECORDED
    return (
        "vectors recorded from the package that it was made from, changed in the same way:"
        f" {manifest.made.how} (not the original model)"
    )


def made_note(manifest: Manifest) -> str:
    """Say of a package that is another model than the original what it is equal to instead."""
    assert manifest.made is not None, "a package that is the original needs no such note"
    return (
        f"The package is another model than the one that it was made from ({manifest.made.how}), so"
        " it is not equal to that, nor to the original. It was proven equal to the package of"
        f" model sha256 {manifest.made.model_sha256[:12]}... changed in the same way, which"
        " `moh-deploy verify` repeats without --against; --labels says what it loses."
    )


@dataclass(frozen=True)
class Answers:
    """The values that a reference computes on samples."""

    vectors: tuple[VectorSet, ...]
    has_gates: bool  # They hold the gates of every layer
    notes: tuple[str, ...] = ()
    # Why some hold none, although others do: a sentence, by their numbers.
    without_gates: Mapping[int, str] = field(default_factory=dict)


# Checked with isinstance where the user hands one over.
@runtime_checkable
class Reference(Protocol):
    """One side of a comparison."""

    @property
    def name(self) -> str:
        """The origin of the expected values, in the words of a report."""

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Return the expected values of a package on samples.

        Raises:
            MoHDeployError: The reference cannot run, or not on these.
        """


@dataclass(frozen=True)
class RecordedReference:
    """The outputs and gates that a package holds for its recorded runs."""

    name: str = RECORDED

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Return the recorded values."""
        # A package without the gates of every layer does not open.
        return Answers(tuple(sample.known for sample in samples), has_gates=True)


@dataclass(frozen=True)
class ExpectedOutputs:
    """The outputs that the user's files hold."""

    name: str

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Return the outputs in the files.

        Raises:
            ConfigError: One holds no outputs.
        """
        notes: list[str] = []
        for sample in samples:
            names = [spec.name for spec in package.manifest.outputs]
            absent = ", ".join(f"'{name}'" for name in names if name not in sample.known.outputs)
            if not sample.known.outputs:
                why = f"no member is named {absent}"
                raise ConfigError(f"{sample.file} holds no expected outputs: {why}.")
            # A file with some of the outputs is compared on those.
            if absent:
                notes.append(f"{sample.file} holds no expected output {absent}: not compared.")
        vectors = tuple(sample.known for sample in samples)
        return Answers(vectors, has_gates=False, notes=tuple(dict.fromkeys(notes)))


def expected_outputs(files: Iterable[Path | None]) -> ExpectedOutputs:
    """Return the outputs in samples' files as a reference."""
    return ExpectedOutputs(f"expected outputs in {shortened(map(str, files))}")


def corpus_reference(corpus: Sequence[CorpusSample]) -> RecordedReference:
    """Return the reference that a corpus holds; its name says what recorded it."""
    return RecordedReference(f"regression corpus, recorded from {recorded_from(corpus)}")


def recorded_from(corpus: Sequence[CorpusSample]) -> str:
    """Name the models that recorded the samples, in the words of a report."""
    return ", ".join(dict.fromkeys(sample.reference for sample in corpus))


def corpus_samples(corpus: Sequence[CorpusSample]) -> tuple[Sample, ...]:
    """Return its samples, called by their numbers and sizes."""
    return tuple(
        Sample(sample.vectors, label(f"corpus {i}", sample.vectors.sizes))
        for i, sample in enumerate(corpus)
    )


@dataclass(frozen=True)
class Answered:
    """Samples that make one comparison, because the reference knows the same of each."""

    reference: str
    answers: Answers  # Of these samples alone
    numbers: Sequence[int]  # The places of these samples among all of them


def by_gates(reference: str, answers: Answers) -> list[Answered]:
    """Return the answers with gates, then those without; only what there is."""
    whole, alone = range(len(answers.vectors)), answers.without_gates
    # Every sample has as much: one comparison, under the reference's own name.
    if not alone:
        return [Answered(reference, answers, whole)]

    def part(name: str, numbers: list[int]) -> Answered:
        vectors = tuple(answers.vectors[number] for number in numbers)
        return Answered(name, replace(answers, vectors=vectors, without_gates={}), numbers)

    known = part(reference, [number for number in whole if number not in alone])
    rest = part(f"{reference}, outputs alone", sorted(alone))
    # Many samples share a reason, and the report needs it once.
    notes = (*answers.notes, *dict.fromkeys(alone.values()))
    rest = replace(rest, answers=replace(rest.answers, has_gates=False, notes=notes))
    return [known, rest] if known.numbers else [rest]


# The subject of `verify`: a package as it runs here, or an engine with its package.

# The variants of a model that tell errors of kernels, errors of routers, and rounding apart.


class Variants(Protocol):
    """Opens variants of a model in which the gates of each layer are inputs.

    They are fed as `forced_gates(name)`; the routers' own are returned as `computed_gates(name)`.
    """

    def why_not_forced(self) -> str | None:
        """Return why the gates cannot be fed; None if they can."""

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        """Open the model as it is judged.

        Args:
            gates: Name of each layer's gates to their dtype.
            inner: Names of inner values to return besides.
        """

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        """Open the model with something that rounding moves.

        Returns:
            None if the model has nothing that could move so.
        """


@dataclass(frozen=True)
class Subject:
    """A package or an engine, read and not loaded."""

    model: Deployed
    # The package, or the one that the engine was built from, of the engine's precision.
    package: OnnxPackage
    kernels: Kernels
    runtime: Runtime = "onnxruntime"

    @property
    def has_gates(self) -> bool:
        """Tell whether it returns the gates of its layers, which an engine does not."""
        return not self.model.is_compiled

    @property
    def variants(self) -> Variants | None:
        """The variants that can be opened of it; None for an engine."""
        # An engine's graph is fixed: gates cannot be made inputs of it any more.
        if self.model.is_compiled:
            return None
        return PackageVariants(self.package, self._variant)

    @property
    def _variant(self) -> Variant:
        # Nothing is timed, so threads may sleep between operators.
        return Variant(runtime=self.runtime, kernels=self.kernels, spins=False, apart=True)

    def recorded(self) -> tuple[tuple[VectorSet, ...], str]:
        """Return the recorded runs that it can repeat, and what they are in words.

        Raises:
            ConfigError: It is missing.
        """
        words = recorded_words(self.package.manifest)
        found = tuple(filter(self.takes, self.package.vectors))
        if not found and self.model.is_compiled:
            raise ConfigError(
                f"no recorded run of the package is of sizes that {self.model.root} was built for.",
                hint="Build it with a --profile that has the example's sizes, or give --inputs.",
            )
        if not found and self.package.vectors:
            raise ConfigError(
                f"every recorded run of {self.model.root} has an empty axis, which OpenVINO does"
                " not run.",
                hint="Give --inputs, or --runtime onnxruntime.",
            )
        return found, f"{words}{self.left_out(self.package.vectors)}"

    def takes(self, run: VectorSet) -> bool:
        """Tell whether it can repeat a recorded run: an engine within its profile, OpenVINO
        without an empty axis."""
        if self.model.is_compiled:
            return self.model.fits(run.sizes)
        return self.runtime != "openvino" or all(array.size for array in run.inputs.values())

    def left_out(self, runs: Sequence[VectorSet]) -> str:
        """Return what reports say of the runs that it does not take; empty if it takes all."""
        if self.model.is_compiled:
            return ", those of sizes that the engine was built for"
        sizes = [label("", run.sizes).strip() for run in runs if not self.takes(run)]
        return f", not run in OpenVINO for an empty axis: {', '.join(sizes)}" if sizes else ""

    def load(self) -> Runner:
        """Load it, so that it also returns what can be compared of its layers.

        Raises:
            BackendError: The runtime failed, or the engine cannot run here.
        """
        # Inner values are asked for at once: a second session would take the model's memory again.
        variant = self._variant
        if self.model.is_compiled:
            return self.model.open(variant)
        # The package as it was read: one that is still being written cannot be read by its path.
        return open_runner(self.package, variant.returning(names_to_return(self.package)))


def read_subject(
    root: Path,
    package: Path | None,
    kernels: Kernels,
    runtime: Runtime | None = None,
    *,
    staged: bool = False,
) -> Subject:
    """Read a package, or an engine and its package.

    Raises:
        PackageError: It is neither, or has changed since it was written.
        ConfigError: `package` is given for a package, or not the one that the engine was built
            from.
        BackendError: The runtime that the package was tuned for is not installed.
    """
    model = find_deployed(root)
    made_from = model.made_from(package, staged=staged)
    # Of a package that is still being written, the path is not yet one.
    preferred = made_from.manifest.runtime if not model.is_compiled else None
    return Subject(model, made_from, kernels, runtime_for(runtime, preferred))
