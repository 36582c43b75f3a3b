"""The regression corpus of a package as a reference, and as what two sides are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moh_deploy.package import CorpusSample, OnnxPackage
from moh_deploy.validate.reference import Answers
from moh_deploy.validate.samples import Sample, label


@dataclass(frozen=True)
class CorpusReference:
    """What was recorded when samples were added to the corpus.

    Attributes:
        name: In the words of a report: it says what recorded it.
    """

    name: str

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        """Return what was recorded."""
        return Answers(tuple(one.known for one in samples), has_gates=True)


def corpus_reference(corpus: Sequence[CorpusSample]) -> CorpusReference:
    """Return the reference that a corpus holds."""
    return CorpusReference(f"regression corpus, recorded from {recorded_from(corpus)}")


def recorded_from(corpus: Sequence[CorpusSample]) -> str:
    """Return what recorded the samples, in words."""
    return ", ".join(dict.fromkeys(one.reference for one in corpus))


def corpus_samples(corpus: Sequence[CorpusSample]) -> tuple[Sample, ...]:
    """Return its samples, called by their numbers and sizes."""
    return tuple(
        Sample(one.vectors, label(f"corpus {i}", one.vectors.sizes)) for i, one in enumerate(corpus)
    )
