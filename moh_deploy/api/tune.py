"""Choose for each layer of a package how it is run, by measuring, and write that into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, Runtime, check_replaceable
from moh_deploy.perf.timing import Measure, Stopwatch, check_timing
from moh_deploy.perf.tune.job import TuneJob
from moh_deploy.perf.tune.report import TuneReport
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.models import kernels_of, runtime_for
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.staging import StagedDirectory, temporary_place
from moh_deploy.validate.reference.input_sets import input_sets

DEFAULT_SECONDS = 0.5


def tune(
    package_dir: Path | str,
    *,
    inputs: Sequence[Path | str] = (),
    weights: Sequence[float] = (),
    runtime: Runtime | None = None,
    threads: int | None = None,
    min_time: float = DEFAULT_SECONDS,
    choose: Mapping[str, str] | None = None,
    one_choice: bool = False,
    dry_run: bool = False,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Time each layer densely and sparsely on this machine, and write the fastest into the package.

    A layer has a choice for each range of sizes where one is not the fastest at all of those that
    were measured. The whole model with all choices is timed against the dense one, and is dense at
    sizes at which it would be slower. What it computes is compared with what the original model
    computed before anything is written.

    Args:
        package_dir: The package. It is replaced in one step, or left as it is.
        inputs: npz files to measure on, as `run` takes them, or directories of them; without any,
            the recorded run at the example's sizes. Choices are good for the sizes that were
            measured.
        weights: How often each file counts; 1 each without.
        runtime: `onnxruntime`, `openvino` or `onnxruntime-cuda`: what it is to be fastest in; None
            for what it was tuned for, or else ONNX Runtime. The choices are good for that one.
        threads: Threads within an operator; None for the runtime's own choice.
        min_time: Seconds that each comparison takes at least.
        choose: Path of a layer, or `all`, to `dense`, `sparse` or `projected`: nothing is measured.
            A range may follow, as in `all[seq<=64]`, up to which alone the choice is meant.
        one_choice: Let no choice depend on sizes: the one that is fastest for all inputs together.
        dry_run: Write nothing.
        measure: What times candidates; a clock of its own without.
        progress: What to report steps to.

    Raises:
        PackageError: Not a package, or it cannot be written, or the disk is full.
        ConfigError: An option or a file of inputs does not fit.
        BackendError: There are no kernels, so there is nothing to choose; or ONNX Runtime failed.
        ValidationError: The package as chosen computes something else.
    """
    progress = progress or SilentProgress()
    check_timing(threads, min_time=min_time)
    with progress.step("reading the package"):
        package = OnnxPackage.open(package_dir)
        if not dry_run:
            hint = "--dry-run measures without writing."
            check_replaceable(package.root, "the choices", hint=hint)
        sets = input_sets(package, [Path(path) for path in inputs], weights)
        runs_in = runtime_for(runtime, package.manifest.runtime)
        variant = Variant(runtime=runs_in, threads=threads)
        use = kernels_of(variant, package.manifest.compute_type)
    on_gpu = runs_in == "onnxruntime-cuda"
    stopwatch = Stopwatch.for_threads(threads, min_time, on_gpu=on_gpu)
    # Beside the package, on whose disk there has to be room for the result anyway.
    # A dry run needs no permission to write beside the package.
    place = temporary_place("moh-deploy-tune") if dry_run else package.root
    with StagedDirectory(place) as scratch:
        job = TuneJob(package, use, variant, one_choice, scratch.path, progress)
        if choose is not None:
            outcome = job.given(choose)
        else:
            outcome = job.measured(sets, measure or stopwatch, stopwatch.name)
        # Recorded inputs are compared with the original itself, so only the user's need the package
        # as it was.
        proof = job.prove(outcome, sets if inputs else [])
        if not dry_run:
            with progress.step("writing the package"):
                # Only after the proof: the package that is there stays until then.
                # What a package prefers is what it was tuned for last.
                prefers = None if package.manifest.runtime is None else runs_in
                write_choices(
                    package, outcome.layers, package.root, tuning=outcome.tuning, runtime=prefers
                )
    return TuneReport(
        package=package.root,
        before=package.manifest.layers,
        layers=outcome.layers,
        tuning=outcome.tuning,
        asked=choose or {},
        predicted_gains=job.predicted_gains(outcome, proof.described.layer_nodes),
        model_ratio=outcome.model_ratio,
        model_ratios=outcome.model_ratios,
        dense_was_faster=outcome.dense_was_faster,
        ranges_did_not_pay=outcome.ranges_did_not_pay,
        max_abs_error=proof.max_abs_error,
        flipped_tokens=proof.flipped_tokens,
        kernels=proof.described.kernels,
        written=not dry_run,
        speed=job.predicted_speed(outcome, proof.described.layer_nodes),
    )
