"""The regression corpus of a package as a reference, and as what two sides are compared on."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.package import CorpusSample
from moh_deploy.validate.reference import RecordedReference
from moh_deploy.validate.samples import Sample, label


def corpus_reference(corpus: Sequence[CorpusSample]) -> RecordedReference:
    """Return the reference that a corpus holds; its name says what recorded it."""
    return RecordedReference(f"regression corpus, recorded from {recorded_from(corpus)}")


def recorded_from(corpus: Sequence[CorpusSample]) -> str:
    """Name the models that recorded the samples, in the words of a report."""
    return ", ".join(dict.fromkeys(one.reference for one in corpus))


def corpus_samples(corpus: Sequence[CorpusSample]) -> tuple[Sample, ...]:
    """Return its samples, called by their numbers and sizes."""
    return tuple(
        Sample(one.vectors, label(f"corpus {i}", one.vectors.sizes)) for i, one in enumerate(corpus)
    )
