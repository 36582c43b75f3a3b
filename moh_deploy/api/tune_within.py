"""Find the fastest package that is still good: over runtimes, precisions and ways of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np

from moh_deploy.api.tune import DEFAULT_SECONDS
from moh_deploy.derive.precision import LOWER_PRECISIONS, write_precision
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, Runtime, check_package_output
from moh_deploy.perf.environment import Processor
from moh_deploy.perf.timing import Measure, Stopwatch, check_timing
from moh_deploy.perf.tune.contests import WithinTask, find_ways
from moh_deploy.perf.tune.report import RuntimePrecision, SearchReport
from moh_deploy.perf.tune.search import ContestsApart, Search, TakesCandidates, write_chosen
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.lowered_package import check_float32
from moh_deploy.runtime.models import kernels_of
from moh_deploy.runtime.quantized_package import INT8
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress, SilentProgress, TerminalProgress
from moh_deploy.system.staging import StagedDirectory, temporary_place
from moh_deploy.validate.accuracy.task import Labelling, Task
from moh_deploy.validate.compare.policy import Condition, better_of, metrics_of, parse_conditions
from moh_deploy.validate.reference.calibration import calibration_runs
from moh_deploy.validate.reference.samples import named_mask

STATIC_INT8 = "static int8"
"""What a search calls int8 with static scales."""


def tune_within(
    package_dir: Path | str,
    output: Path | str | None = None,
    *,
    within: str | Sequence[str],
    inputs: Sequence[Path | str] = (),
    calibration: Sequence[Path | str] = (),
    weights: Sequence[float] = (),
    labels: Path | str | Array | None = None,
    label_output: str | None = None,
    ignore_label: int = -100,
    shift_labels: bool = False,
    batch_size: int | None = None,
    code_dirs: Sequence[Path | str] = (),
    runtime: Runtime | None = None,
    threads: int | None = None,
    min_time: float = DEFAULT_SECONDS,
    one_choice: bool = False,
    dry_run: bool = False,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> SearchReport:
    """Write the package that is the fastest on this machine and still meets some conditions.

    Tried are all runtimes that are installed, and all precisions that `precision` writes, each with
    its layers tuned. What `precision` or `verify` refuses is not taken, whatever conditions say.

    Args:
        package_dir: A package in float32, which stays as it is.
        output: The package to write; None with `dry_run` only.
        within: Conditions that all have to hold: `top-1 >= 0.98 * reference`, `flips <= 0`,
            `parity`. The reference is the package itself, in ONNX Runtime. If samples are too few
            to judge a metric, float32 alone can be chosen, which is equal.
        inputs: npz files, or directories of them: what conditions are judged on, and times are
            measured on. With labels they hold samples, which run in batches, and times are of the
            first batch of each file. Without any the recorded runs.
        calibration: npz files, or directories of them, that static scales of int8 are made of:
            these are tried, too. `inputs` must not hold their samples, nor may recorded runs.
        weights: How often each file counts for times; 1 each without.
        labels: Of all samples in `inputs`, as `verify` takes them; conditions on metrics need them.
        label_output: The output that is scored, where shapes do not tell.
        ignore_label: Labels of this number are left out.
        shift_labels: Labels are the tokens that the model is given.
        batch_size: How many samples run at once; None to choose.
        code_dirs: Directories with the modules of metrics.
        runtime: Try this one only; None: all.
        threads: Threads within an operator; None for the runtime's own choice.
        min_time: Seconds that each comparison takes at least.
        one_choice: Let no layer's choice depend on sizes.
        dry_run: Write nothing.
        measure: What times candidates, all of them in this process; a clock of its own without,
            and each candidate in a process of its own, so that one that crashes is one row.
        progress: What to report steps to.

    Raises:
        PackageError: Not a package, or the output cannot be written.
        ConfigError: The package is not in float32, or a condition, an option or a file does not
            fit.
        ValidationError: Not even the package itself meets the conditions, or it is not equal to
            the original.
        BackendError: No runtime can run the package.
    """
    progress = progress or SilentProgress()
    search = FastestSearch(
        within=within,
        inputs=inputs,
        calibration=calibration,
        weights=weights,
        labels=labels,
        label_output=label_output,
        ignore_label=ignore_label,
        shift_labels=shift_labels,
        batch_size=batch_size,
        code_dirs=code_dirs,
        runtime=runtime,
        threads=threads,
        min_time=min_time,
        one_choice=one_choice,
    )
    search.check()
    if (output is None) != dry_run:
        raise ConfigError(
            "a dry run writes nothing: leave the output out."
            if dry_run
            else "there is no output to write the chosen package to.",
            hint="Name it: --output DIR. --dry-run measures without writing.",
        )
    written = None if output is None else Path(output)
    if written is not None:
        check_package_output(written, made_of=Path(package_dir))
    base = search.read(Path(package_dir), progress)
    # Beside the output, on whose disk there has to be room anyway.
    with StagedDirectory(written or temporary_place("moh-deploy-tune")) as scratch:
        return search.run(base, scratch.path, written, progress, measure=measure)


class SearchSettings(TypedDict, total=False):
    """The options of a search; see `tune_within` for what each one means."""

    inputs: Sequence[Path | str]
    calibration: Sequence[Path | str]
    weights: Sequence[float]
    labels: Path | str | Array | None
    label_output: str | None
    ignore_label: int
    shift_labels: bool
    batch_size: int | None
    code_dirs: Sequence[Path | str]
    runtime: Runtime | None
    threads: int | None
    min_time: float
    one_choice: bool


@dataclass(frozen=True, kw_only=True)
class FastestSearch:
    """A search as it is asked for; see `tune_within` for what each field means."""

    within: str | Sequence[str]
    inputs: Sequence[Path | str] = ()
    calibration: Sequence[Path | str] = ()
    weights: Sequence[float] = ()
    labels: Path | str | Array | None = None
    label_output: str | None = None
    ignore_label: int = -100
    shift_labels: bool = False
    batch_size: int | None = None
    code_dirs: Sequence[Path | str] = ()
    runtime: Runtime | None = None
    threads: int | None = None
    min_time: float = DEFAULT_SECONDS
    one_choice: bool = False

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return parse_conditions([self.within] if isinstance(self.within, str) else self.within)

    def check(self) -> None:
        """Refuse what does not fit, whatever the package is.

        Raises:
            ConfigError: An option or a condition does not fit.
        """
        check_timing(self.threads, min_time=self.min_time)
        metrics = metrics_of(self.conditions, has_labels=self.labels is not None)
        if self.labels is not None and not metrics:
            raise ConfigError(
                "there are labels, and no condition is about a metric.",
                hint="Ask for one: --within 'top-1 >= 0.98 * reference'.",
            )

    def read(self, package_dir: Path, progress: Progress) -> OnnxPackage:
        """Read the package to start from.

        Raises:
            PackageError: It is not a package.
            ConfigError: It is not in float32, or inputs to calibrate on do not fit it.
        """
        with progress.step("reading the package"):
            base = OnnxPackage.open(package_dir)
            check_float32(base)
            if self.calibration:  # refused here, and not as a candidate's row
                calibration_runs(base, self._paths(self.calibration), self._paths(self.inputs))
        return base

    def run(
        self,
        base: OnnxPackage,
        scratch: Path,
        output: Path | None,
        progress: Progress,
        *,
        measure: Measure | None = None,
        before: Callable[[Search, RuntimePrecision | None], object] = lambda search, way: None,
    ) -> SearchReport:
        """Search, and write the best package.

        Args:
            base: The float32 package.
            scratch: A directory for packages; what a search has kept there is taken over.
            output: The package to write; None to write none.
            measure: What times candidates; see `tune_within`.
            before: Called before each way is tried, with it, and with None at the end.

        Raises:
            MoHDeployError: As `tune_within` does.
        """
        precisions = (STATIC_INT8, *LOWER_PRECISIONS) if self.calibration else LOWER_PRECISIONS
        ways, absent = find_ways(base, self.runtime, precisions)
        # One clock for all: they are compared with each other.
        on_gpu = any(way.runtime == "onnxruntime-cuda" for way in ways)
        stopwatch = Stopwatch.for_threads(self.threads, self.min_time, on_gpu=on_gpu)
        asked = WithinTask(
            partial(_lowered, self._paths(self.calibration)),
            base.root,
            self.conditions,
            self._paths(self.inputs),
            tuple(self.weights),
            self._task(base),
            self.threads,
            self.one_choice,
            measure or stopwatch,
            stopwatch.name,
        )
        texts = tuple(condition.text.strip() for condition in self.conditions)
        with ExitStack() as stack:
            contests: TakesCandidates
            if measure is None:
                contests = ContestsApart(asked, scratch, isinstance(progress, TerminalProgress))
            else:
                contests = stack.enter_context(asked.contests(scratch, progress))
            search = Search(base, ways, contests, scratch)
            search.resume()
            best = search.run(partial(before, search))
            if output is not None:
                with progress.step("writing the package"):
                    write_chosen(best, output, texts)
        use = kernels_of(Variant(runtime=best.way.runtime), best.package.manifest.compute_type)
        return SearchReport(
            package=base.root,
            output=output,
            within=texts,
            runtime=best.way.runtime,
            precision=best.way.precision,
            machine=Processor.this(use.instruction_set).describe(),
            clock=stopwatch.name,
            threads=self.threads,
            sizes=best.sizes,
            tried=(*search.tried, *absent),
            kernels=use,
        )

    def _task(self, base: OnnxPackage) -> Task | None:
        if self.labels is None:
            return None
        return Task(
            self.labels if isinstance(self.labels, (str, Path)) else np.asarray(self.labels),
            metrics_of(self.conditions, has_labels=True),
            better_of(self.conditions),
            self.label_output,
            Labelling(self.ignore_label, self.shift_labels),
            self.batch_size,
            self._paths(self.code_dirs),
            named_mask(base.manifest, None),
        )

    @staticmethod
    def _paths(given: Sequence[Path | str]) -> tuple[Path, ...]:
        return tuple(map(Path, given))


def _lowered(
    calibrated: Sequence[Path], package_dir: Path, to: str, folder: Path, progress: Progress
) -> OnnxPackage:
    package, runs = OnnxPackage.open(package_dir), []
    if to == STATIC_INT8:
        to, runs = INT8, calibration_runs(package, calibrated, ())
    report = write_precision(package, to, folder, progress, calibration=runs)
    return OnnxPackage.open(report.package)
