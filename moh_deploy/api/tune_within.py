"""Find the fastest package that is still good: over runtimes, precisions and ways of layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from moh_deploy.api.tune import DEFAULT_SECONDS
from moh_deploy.derive.precision import LOWER_PRECISIONS, write_precision
from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, Runtime, check_package_output
from moh_deploy.perf.environment import Processor
from moh_deploy.perf.timing import Measure, Stopwatch, check_timing
from moh_deploy.perf.tune.contests import WithinTask, find_ways
from moh_deploy.perf.tune.report import SearchReport
from moh_deploy.perf.tune.search import ContestsApart, Search, TakesCandidates, write_chosen
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.lowered_package import check_float32
from moh_deploy.runtime.models import kernels_of
from moh_deploy.runtime.quantized_package import INT8
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress, SilentProgress, TerminalProgress
from moh_deploy.system.staging import StagedDirectory, temporary_place
from moh_deploy.validate.accuracy.task import Labelling, Task
from moh_deploy.validate.compare.policy import better_of, metrics_of, parse_conditions
from moh_deploy.validate.reference.calibration import calibration_runs
from moh_deploy.validate.reference.samples import named_mask

STATIC_INT8 = "static int8"
"""What a search calls int8 with static scales."""


def tune_within(
    package_dir: Path | str,
    *,
    within: str | Sequence[str],
    output: Path | str | None = None,
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
        within: Conditions that all have to hold: `top-1 >= 0.98 * reference`, `flips <= 0`,
            `parity`. The reference is the package itself, in ONNX Runtime.
        output: The package to write; None with `dry_run` only.
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
        ValidationError: Not even the package itself can be shown to meet the conditions, or it is
            not equal to the original.
        BackendError: No runtime can run the package.
    """
    progress = progress or SilentProgress()
    check_timing(threads, min_time=min_time)
    conditions = parse_conditions([within] if isinstance(within, str) else list(within))
    metrics = metrics_of(conditions, has_labels=labels is not None)
    if labels is not None and not metrics:
        raise ConfigError(
            "there are labels, and no condition is about a metric.",
            hint="Ask for one: --within 'top-1 >= 0.98 * reference'.",
        )
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
    with progress.step("reading the package"):
        base = OnnxPackage.open(package_dir)
        check_float32(base)
        calibrated = tuple(map(Path, calibration))
        if calibrated:  # refused here, and not as a candidate's row
            calibration_runs(base, calibrated, [*map(Path, inputs)])
    task = None
    if labels is not None:
        task = Task(
            labels if isinstance(labels, (str, Path)) else np.asarray(labels),
            metrics,
            better_of(conditions),
            label_output,
            Labelling(ignore_label, shift_labels),
            batch_size,
            tuple(map(Path, code_dirs)),
            named_mask(base.manifest, None),
        )
    precisions = (STATIC_INT8, *LOWER_PRECISIONS) if calibrated else LOWER_PRECISIONS
    ways, absent = find_ways(base, runtime, precisions)
    # One clock for all: they are compared with each other.
    on_gpu = any(way.runtime == "onnxruntime-cuda" for way in ways)
    stopwatch = Stopwatch.for_threads(threads, min_time, on_gpu=on_gpu)
    asked = WithinTask(
        partial(_lowered, calibrated),
        base.root,
        tuple(conditions),
        tuple(map(Path, inputs)),
        tuple(weights),
        task,
        threads,
        one_choice,
        measure or stopwatch,
        stopwatch.name,
    )
    texts = tuple(condition.text.strip() for condition in conditions)
    # Beside the output, on whose disk there has to be room anyway.
    place = written or temporary_place("moh-deploy-tune")
    with StagedDirectory(place) as scratch, ExitStack() as stack:
        contests: TakesCandidates
        if measure is None:
            shows_steps = isinstance(progress, TerminalProgress)
            contests = ContestsApart(asked, scratch.path, shows_steps)
        else:
            contests = stack.enter_context(asked.contests(scratch.path, progress))
        search = Search(base, ways, contests, scratch.path)
        best = search.run()
        if written is not None:
            with progress.step("writing the package"):
                write_chosen(best, written, texts)
    use = kernels_of(Variant(runtime=best.way.runtime), best.package.manifest.compute_type)
    return SearchReport(
        package=base.root,
        output=written,
        within=texts,
        runtime=best.way.runtime,
        precision=best.way.precision,
        machine=Processor.this(use.instruction_set).describe(),
        clock=stopwatch.name,
        threads=threads,
        sizes=best.sizes,
        tried=(*search.tried, *absent),
        kernels=use,
    )


def _lowered(
    calibrated: Sequence[Path], package_dir: Path, to: str, folder: Path, progress: Progress
) -> OnnxPackage:
    package, runs = OnnxPackage.open(package_dir), []
    if to == STATIC_INT8:
        to, runs = INT8, calibration_runs(package, calibrated, ())
    report = write_precision(package, to, folder, progress, calibration=runs)
    return OnnxPackage.open(report.package)
