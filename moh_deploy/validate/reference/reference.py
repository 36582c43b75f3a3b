"""The references that a package or engine is compared with, and what they answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from moh_deploy.errors import ConfigError
from moh_deploy.package import CorpusSample, Manifest, OnnxPackage, VectorSet
from moh_deploy.system.suggest import shortened
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
