"""What `tune_within` searches: all runtimes that are here, in all precisions, under conditions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moh_deploy.config.dtypes import RUNTIMES
from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage, Runtime
from moh_deploy.perf.timing import Measure
from moh_deploy.perf.tune.contests import Contests, Differs
from moh_deploy.perf.tune.quality import QualityCheck, read_labelled_runs, read_runs
from moh_deploy.perf.tune.search_report import FLOAT32, RuntimePrecision, Tried
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import kernels_of, runtime_name_of
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.progress import Progress
from moh_deploy.validate.accuracy.task import Labelling, Task
from moh_deploy.validate.compare.policy import Condition, ParityCondition

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
            _require_kernels(runtime, base)
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


def _require_kernels(runtime: Runtime, base: OnnxPackage) -> None:
    runtime_name_of(runtime)
    use = kernels_of(Variant(runtime=runtime), base.manifest.compute_type)
    # Without kernels of ours ONNX Runtime is still what everybody has.
    if runtime != "onnxruntime" and use.library is None:
        raise BackendError(f"{runtime_name_of(runtime)} has no kernels here: {use.reason}.")
