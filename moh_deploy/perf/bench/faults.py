"""Look for candidates that compute something wrong: these pass no gate (ADR 26).

Every package is compared with its recorded runs, as `verify` does. On the inputs that are timed its
outputs must not be NaN; and where they differ from those of a baseline that is the same model, it
is compared with that model again, with its gates: a token whose heads are nearly tied may have
chosen others, and nothing else may.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moh_deploy.package import VectorSet
from moh_deploy.perf.bench.candidates import Candidates, is_the_original, is_the_package
from moh_deploy.perf.bench.measured import Agreement
from moh_deploy.runtime.original import Original
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity import compare_answered
from moh_deploy.validate.compare.parity_report import combined
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.reference import RecordedReference, Reference, by_gates
from moh_deploy.validate.reference.references import function_bodies
from moh_deploy.validate.reference.samples import Sample, label, recorded_samples, with_valid_tokens
from moh_deploy.validate.reference.subject import Subject


@dataclass(frozen=True)
class FaultFinder:
    """Looks for packages and engines that compute something else than they should."""

    candidates: Candidates  # what is measured
    original: Original | None  # what baselines of the original are; None if there is none

    def in_recorded_runs(self) -> dict[str, str]:
        """Compare packages and engines with their recorded runs; return faults by name, in words.

        Raises:
            BackendError: The runtime failed.
        """
        found = {}
        for name, subject in self.candidates.subjects.items():
            sets, words = subject.recorded()
            why = _difference(subject, RecordedReference(words), recorded_samples(sets))
            if why is not None:
                found[name] = why
        return found

    def in_timed_run(
        self,
        input_set: InputSet,
        outputs: Mapping[str, Sequence[Array]],
        agreements: Mapping[str, Agreement],
    ) -> dict[str, str]:
        """Look for faults on inputs that are timed; return them by name, in words.

        Args:
            one: The inputs.
            outputs: Of all candidates, by name.
            agreements: Of all but the first of them with it.

        Returns:
            What is wrong, by name. A baseline can be no more than NaN.

        Raises:
            MoHDeployError: A reference cannot be run.
        """
        found = {
            name: f"its outputs on {label(input_set.name, input_set.sizes)} hold NaN"
            for name, arrays in outputs.items()
            # Only NaN differs from itself; unlike `isnan` this takes text, too.
            if any((array != array).any() for array in arrays)
        }
        first, subject = next(iter(self.candidates.subjects.items()))
        # A baseline of other weights differs by right. Only where one of the same model differs,
        # the costly comparison with gates tells a flip of nearly tied heads from a fault.
        differing = [name for name, how in agreements.items() if how.reason is not None]
        # NaN is wrong whatever the reference says.
        # Nothing was recorded on these inputs: the reference answers them when it is asked.
        vectors = VectorSet(input_set.sizes, input_set.inputs, {}, (), ())
        sample = Sample(vectors, label(input_set.name, input_set.sizes))
        for reference in () if first in found else self._same_model(differing):
            why = _difference(subject, reference, [sample])
            if why is not None:
                found.setdefault(first, why)
        return found

    def _same_model(self, differing: Sequence[str]) -> Iterator[Reference]:
        """Yield references that tell whether the first package is wrong where baselines differ."""
        if any(map(is_the_package, differing)):
            yield function_bodies(self.candidates.first)
        # Not every original can say its gates: only one that is a `Reference` can be compared with.
        original: object = self.original
        if not any(map(is_the_original, differing)) or not isinstance(original, Reference):
            return
        # One of other weights is no reference.
        if self.original and not self.candidates.is_of_another_checkpoint(self.original):
            yield original


def _difference(subject: Subject, reference: Reference, samples: Sequence[Sample]) -> str | None:
    manifest = subject.package.manifest
    known = with_valid_tokens(samples, manifest, manifest.valid_tokens)
    answers = reference.answers(subject.package, known)
    with subject.load() as runner:
        reports = [
            compare_answered(subject, runner, part, known, BUILT_IN_POLICY)
            for part in by_gates(reference.name, answers)
        ]
    failure = combined(reports).failure
    return None if failure is None else f"against {reference.name} it is {failure.message}"
