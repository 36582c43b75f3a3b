"""Take one candidate of a search: see whether it is good, whether it wins, and how layers run.

Each has to be good on few samples, then beat the fastest so far in turns with it, then be good on
all samples: what is dear is asked last, and of few.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from moh_deploy.config.dtypes import RUNTIMES
from moh_deploy.errors import BackendError, MoHDeployError, ValidationError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, Runtime, choices_for
from moh_deploy.perf.timing import Measure, ratio, weighted_sum
from moh_deploy.perf.tune.job import TuneJob
from moh_deploy.perf.tune.quality import (
    FLOAT32_PACKAGE,
    NearZero,
    Quality,
    QualityCheck,
    gates_near_zero,
    read_labelled_runs,
    read_runs,
)
from moh_deploy.perf.tune.report import FLOAT32, Ending, RuntimePrecision, Timed, Tried
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.models import kernels_of, runtime_name_of
from moh_deploy.runtime.open_runner import open_runner, opened_package
from moh_deploy.system.progress import Progress
from moh_deploy.validate.accuracy.task import Labelling, Task
from moh_deploy.validate.compare.parity import compare_recorded
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY, Condition, ParityCondition
from moh_deploy.validate.compare.verify_runs import WhatToRun, verify_runs
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.reference import Subject
from moh_deploy.validate.reference.references import PackageReference
from moh_deploy.validate.reference.samples import named_mask

CONTEST = "contest"
HOPELESS = 1.5
"""A package that takes so many times as long as the fastest before its layers are tuned is not
tuned: `export` has chosen for them by prediction, and what measuring adds is less."""

MakePackage = Callable[[str, Path], OnnxPackage]
"""Writes the package in a precision to a directory, if it is equal to the original within the rule
for that precision; raises if it is not, or cannot be made."""


@dataclass(frozen=True)
class Differs:
    """Compares a candidate with the float32 package on files of inputs, as `verify` does."""

    base: OnnxPackage  # the float32 package
    files: Sequence[Path]  # the files; without any nothing is compared: recorded runs were before
    progress: Progress  # what to report steps to

    def __call__(self, way: RuntimePrecision, package: OnnxPackage) -> str | None:
        """Return why it is not equal; None if it is."""
        if not self.files:
            return None
        subject = Subject(opened_package(package), package, "auto", way.runtime)
        what = WhatToRun(self.files, None, named_mask(package.manifest, None))
        reference = PackageReference(FLOAT32_PACKAGE, self.base, Variant())
        policy, progress = BUILT_IN_POLICY, self.progress
        report = verify_runs(subject, what, against=[reference], policy=policy, progress=progress)
        return None if report.failure is None else report.failure.message


@dataclass(frozen=True)
class Best:
    """The fastest package so far that is good."""

    way: RuntimePrecision  # its runtime and precision
    package: OnnxPackage  # as tuned
    quality: Quality  # on all samples
    sizes: tuple[Mapping[str, int], ...]  # what was timed, one a set of inputs
    timed: Timed | None = None  # how it beat the one before


@dataclass(frozen=True)
class Contests:
    """Measure one candidate after the other, in this process; `ContestsApart` is safer."""

    base: OnnxPackage  # the package, in float32
    make: MakePackage  # what makes packages in other precisions
    check: QualityCheck  # its figures on samples, which have to meet the conditions
    # Why a package is not equal to the float32 one; None if it is, or was not compared.
    differs: Callable[[RuntimePrecision, OnnxPackage], str | None]
    sets: Sequence[InputSet]  # what is timed
    threads: int | None  # within an operator; None for the runtime's own choice
    one_choice: bool  # no layer's choice depends on sizes
    measure: Measure  # what times candidates
    clock: str  # what it measures
    scratch: Path  # a directory for packages
    progress: Progress  # what to report steps to

    def first(self, way: RuntimePrecision) -> Best:
        """Tune the float32 package, and take it as it is if that meets the conditions only so.

        Raises:
            ValidationError: It does not meet the conditions.
        """
        package = self._tuned(way, self.base)
        near_zero = self._near_zero(way, self.base)
        quality = self._judged(way, package, near_zero)
        if quality.failed:
            # Kernels sum in another order than bodies, and ties within rounding flip.
            package = self.base
            quality = self._judged(way, package, near_zero)
        if quality.failed:
            raise ValidationError(
                f"the float32 package itself does not meet the condition: {quality.failed[0]}",
                hint="Ties within rounding flip in any other way to compute: allow some, or more"
                " to be lost.",
            )
        return Best(way, package, quality, tuple(input_set.sizes for input_set in self.sets))

    def challenge(self, way: RuntimePrecision, made: OnnxPackage, best: Best) -> Best | Tried:
        """Return the candidate if it beats the best one, else how it ended.

        Args:
            way: Its runtime and precision.
            made: The package in that precision.
            best: The fastest so far.
        """
        timed: Timed | None = None
        quality: Quality | None = None

        def out(ending: Ending, reason: str) -> Tried:
            """Say how it ended, with the last figures."""
            return Tried(way, ending, reason, timed, quality)

        try:
            with self._opened(way, made, gates=True) as runner:
                emulated = runner.describe().kernels.emulated_dtype
                if emulated is not None:
                    return out(
                        "could not run",
                        f"the runtime has no products of {emulated} here: it would compute in"
                        " float32 and round every result.",
                    )
                near_zero = self._near_zero(way, made)
                quality = self.check.first_look(runner, near_zero)
            if quality.failed:
                return out("not good", " ".join(quality.failed))
            timed = self._contest(way, made, best)
            if timed.ratio.low > HOPELESS:
                return out("too slow", f"{timed.sentence()}, before its layers are tuned")
            package = self._tuned(way, made)
            if package is not made:
                timed = self._contest(way, package, best)
            if not timed.ratio.is_faster:
                why = "" if timed.ratio.is_slower else ": not faster beyond noise"
                return out("too slow", f"{timed.sentence()}{why}")
            quality = self._judged(way, package, near_zero)
            if quality.failed:
                return out("not good", " ".join(quality.failed))
            different = self.differs(way, package)
            if different is not None:
                return out("not good", different)
        # An error ends a candidate, and no candidate ends the search.
        except MoHDeployError as error:
            return out(*ended_by(error))
        return Best(way, package, quality, best.sizes, timed)

    def _tuned(self, way: RuntimePrecision, package: OnnxPackage) -> OnnxPackage:
        """Choose how each layer runs, and prove the package as chosen, in its runtime.

        Returns:
            The package itself where there is nothing to choose.

        Raises:
            ValidationError: It differs from the recorded runs of the original.
        """
        variant = self._variant(way)
        use = kernels_of(variant, package.manifest.compute_type)
        if use.library is None or not any(map(choices_for, package.manifest.layers)):
            with self.progress.step(f"comparing {way.name} with the original model"):
                compare_recorded(package, variant).raise_if_unequal()
            return package
        folder = folder_of(self.scratch, way)
        folder.mkdir()
        job = TuneJob(package, use, variant, self.one_choice, folder, self.progress)
        outcome = job.measured(self.sets, self.measure, self.clock)
        job.prove(outcome, [])
        return write_choices(package, outcome.layers, folder / "tuned", tuning=outcome.tuning)

    def _contest(self, way: RuntimePrecision, package: OnnxPackage, best: Best) -> Timed:
        """Time a candidate and the best one in turns."""
        with ExitStack() as stack, self.progress.step(f"timing {way.name}"):
            runners = {
                runtime_precision.name: stack.enter_context(self._opened(runtime_precision, of))
                for runtime_precision, of in ((best.way, best.package), (way, package))
            }
            weights = [input_set.weight for input_set in self.sets]
            times = [
                self.measure(
                    CONTEST, {k: runner.bound(fed.inputs) for k, runner in runners.items()}
                )
                for fed in self.sets
            ]
        mine, theirs = (
            weighted_sum([time[name] for time in times], weights)
            for name in (way.name, best.way.name)
        )
        ms, rival_ms = (median(group) / sum(weights) for group in (mine, theirs))
        return Timed(best.way.name, ms, rival_ms, ratio(mine, theirs))

    def _judged(self, way: RuntimePrecision, package: OnnxPackage, near_zero: NearZero) -> Quality:
        runner = self._opened(way, package, gates=True)
        with runner, self.progress.step(f"judging {way.name}"):
            quality = self.check.judge(runner, near_zero)
        # `_tuned` has compared it with recorded runs; only in float32 does that mean equal.
        return quality.of_equal() if way.precision == FLOAT32 else quality

    def _near_zero(self, way: RuntimePrecision, package: OnnxPackage) -> NearZero:
        with self.progress.step(f"measuring the rounding of {way.name}"):
            return gates_near_zero(package, self._variant(way))

    def _opened(
        self, way: RuntimePrecision, package: OnnxPackage, *, gates: bool = False
    ) -> Runner:
        variant = self._variant(way)
        return open_runner(package, variant.returning(package.gate_names) if gates else variant)

    def _variant(self, way: RuntimePrecision) -> Variant:
        return Variant(runtime=way.runtime, threads=self.threads)


def folder_of(scratch: Path, way: RuntimePrecision) -> Path:
    """Return where what is tuned of a candidate is written."""
    return scratch / f"{way.runtime}-{way.precision}"


def ended_by(error: MoHDeployError) -> tuple[Ending, str]:
    """Say how an error ends a candidate, and the reason for its row."""
    reason = error.message if error.hint is None else f"{error.message} {error.hint}"
    return "not good" if isinstance(error, ValidationError) else "could not run", reason


# What `tune_within` searches: all runtimes that are here, in all precisions, under conditions.

Lower = Callable[[Path, str, Path, Progress], OnnxPackage]


@dataclass(frozen=True)
class WithinTask:
    """A search, as it travels to the processes of its candidates; see `SearchTask`."""

    lower: Lower  # writes the package in a precision to a directory; a function of a module
    package_dir: Path
    conditions: tuple[Condition, ...]
    inputs: tuple[Path, ...]
    weights: tuple[float, ...]
    task: Task | None  # how samples are scored; None without labels
    threads: int | None
    one_choice: bool
    measure: Measure
    clock: str  # what `measure` reads. Others are those of `tune_within`.

    def made(self, to: str, folder: Path, progress: Progress) -> OnnxPackage:
        """Write the package in a precision."""
        return self.lower(self.package_dir, to, folder, progress)

    @contextmanager
    def contests(self, scratch: Path, progress: Progress) -> Iterator[Contests]:
        """Open the float32 package beside which candidates are judged, and read the samples."""
        base = OnnxPackage.open(self.package_dir, check_digests=False)
        if self.task is None:
            samples = read_runs(base, self.inputs, self.weights)
        else:
            samples = read_labelled_runs(base, self.inputs, self.weights, self.task)
        ignore = (Labelling() if self.task is None else self.task.labelling).ignore
        kept_gates = Variant(threads=self.threads, spins=False).returning(base.gate_names)
        on_parity = any(isinstance(condition, ParityCondition) for condition in self.conditions)
        files = self.inputs if self.task is None and on_parity else ()
        with open_runner(base, kept_gates) as runner:
            check = QualityCheck(
                base, runner, self.conditions, samples.metrics, samples.runs, samples.files, ignore
            )
            yield Contests(
                base=base,
                make=lambda to, folder: self.made(to, folder, progress),
                check=check,
                differs=Differs(base, files, progress),
                sets=samples.sets,
                threads=self.threads,
                one_choice=self.one_choice,
                measure=self.measure,
                clock=self.clock,
                scratch=scratch,
                progress=progress,
            )


def find_ways(
    base: OnnxPackage, asked: Runtime | None, precisions: Sequence[str]
) -> tuple[list[RuntimePrecision], list[Tried]]:
    """Return what to try, float32 first, and what cannot be, with the reason.

    Raises:
        BackendError: The runtime that is asked for cannot be.
    """
    ways: list[RuntimePrecision] = []
    absent: list[Tried] = []
    for runtime in RUNTIMES if asked is None else (asked,):
        try:
            name = runtime_name_of(runtime)
            use = kernels_of(Variant(runtime=runtime), base.manifest.compute_type)
            # Without kernels of ours ONNX Runtime is still what everybody has.
            if runtime != "onnxruntime" and use.library is None:
                raise BackendError(f"{name} has no kernels here: {use.reason}.")
        except BackendError as error:
            if asked is not None:
                raise
            reason = f"{error.message} {error.hint or ''}".strip()
            absent.append(Tried(RuntimePrecision(runtime, FLOAT32), "could not run", reason))
            continue
        ways += [RuntimePrecision(runtime, to) for to in (FLOAT32, *precisions)]
    if not ways:
        raise BackendError(f"no runtime can run {base.root}: {absent[0].reason}")
    # The shortest dtypes first, after float32 to compare with: most likely they are the fastest,
    # and the sooner something is fast, the less has to be tuned of what is not.
    first, *others = ways
    others.sort(key=lambda way: [*precisions, FLOAT32].index(way.precision))
    return [first, *others], absent
