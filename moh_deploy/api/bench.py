"""Measure how fast packages run, beside baselines that take turns with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage, Runtime
from moh_deploy.perf.bench import candidates
from moh_deploy.perf.bench.baseline_figures import bench_figures, machine_of, require_one_package
from moh_deploy.perf.bench.bench_run import BenchRun
from moh_deploy.perf.bench.candidate import MeasureFresh, MeasureRuns, fresh_run, runs_timer
from moh_deploy.perf.bench.gates import parse_gate
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.timing import check_timing
from moh_deploy.report.baseline.figures import path_key
from moh_deploy.report.baseline.ratchet import Ratchet
from moh_deploy.report.document import About
from moh_deploy.report.markdown import MARKDOWN_FILE
from moh_deploy.report.markdown import markdown as as_markdown
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.runtime.original import Original
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.replaceable import check_file_output
from moh_deploy.system.staging import scratch_directory, staged_file
from moh_deploy.validate.reference.input_sets import InputSet, batch_dim, input_sets, sized_inputs
from moh_deploy.validate.reference.samples import npz_files

DEFAULT_SECONDS, DEFAULT_WARMUP = 5.0, 0.5


def bench(
    package_dirs: Path | str | Sequence[Path | str],
    *,
    baselines: Sequence[Path | str] = (),
    inputs: Sequence[Path | str] = (),
    batch: Sequence[int] = (),
    sizes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    runtime: Runtime | None = None,
    kernels: Kernels = "auto",
    min_time: float = DEFAULT_SECONDS,
    warmup: float = DEFAULT_WARMUP,
    gates: Sequence[str] = (),
    original: Original | None = None,
    package: Path | str | None = None,
    markdown: Path | str | None = None,
    baseline_file: Path | str | None = None,
    update_baseline: bool = False,
    measure: MeasureRuns | None = None,
    measure_fresh: MeasureFresh | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time packages and baselines in turns, and each once more in a process of its own.

    Args:
        package_dirs: Packages or engine directories, or one.
        baselines: What to compare with: `dense`, the first package with every layer dense;
            `functions`, the first package on function bodies; `fixed-routing`, the first package
            with its routers' results fed; `plain-engine`, the first engine built once more without
            kernels, which is what an engine with kernels is compared with if nothing is named;
            `eager`, the original in PyTorch; `plain-onnx`, its
            export by PyTorch alone; another package; or an ONNX file.
        inputs: npz files to run on, as `run` takes them, or directories; without, the run at the
            example's sizes.
        batch: Sizes of the batch dimension to run at.
        sizes: Other dynamic dimensions to the sizes to run at: all combinations are measured.
            Inputs of sizes that were not recorded are random.
        threads: Threads within an operator; None for the runtime's own choice.
        runtime: `onnxruntime`, `openvino` or `onnxruntime-cuda`: what runs a package; None for
            what it was tuned for, or else ONNX Runtime. An engine has its own.
        kernels: What runs MoH nodes, see `Variant`.
        min_time: Seconds that the candidates run on each set of inputs, all together.
        warmup: Seconds that they run before, untimed.
        gates: Conditions such as `p50 <= 1.05 * baseline`.
        original: The model that the first package was made from; see `load_original`.
        package: What the first one was built from, if that is an engine.
        markdown: File to write the report to.
        baseline_file: JSON file of what one package reached before: what is worse fails, see
            `ratchet`.
        update_baseline: Write what is new or better into that file, and make it if it is not there.
        measure: What times candidates; clocks of its own without.
        measure_fresh: What runs a candidate in a process of its own.
        progress: What to report steps to.

    Returns:
        What was measured. Look at `passed`, or call `raise_if_failed`.

    Raises:
        PackageError: Not a package, or one that has changed since it was written; or the report
            cannot be written.
        ConfigError: An option or a file of inputs does not fit.
        BackendError: A runtime failed, or an engine cannot run here.
    """
    progress = progress or SilentProgress()
    output = None if markdown is None else Path(markdown)
    check_timing(threads, min_time=min_time, warmup=warmup)
    if output is not None:
        check_file_output(output, MARKDOWN_FILE)
    ratchet = Ratchet.open(baseline_file, "bench", update=update_baseline)
    roots = [package_dirs] if isinstance(package_dirs, (Path, str)) else list(package_dirs)
    # Kernels that are slower than what the engine's runtime has itself should not go unnoticed.
    if not baselines and roots and find_deployed(roots[0]).holds_kernels:
        baselines = (candidates.PLAIN_ENGINE,)
    with scratch_directory("moh-deploy-bench") as scratch:
        with progress.step("reading the packages"):
            setting = candidates.BenchSetting(kernels, threads, original, scratch, runtime)
            found = candidates.find_candidates(setting, roots, baselines, package)
            names = [entry.name for entry in found.entries]
            against = [entry.name for entry in found.entries if entry.is_baseline]
            if ratchet is not None:
                require_one_package({entry.name: entry.is_baseline for entry in found.entries})
            # Gates are read before anything is timed: a typing error must not cost the minutes
            # until then.
            asked = [parse_gate(gate, candidates=names, baselines=against) for gate in gates]
            sets = _input_sets(found.first, list(map(Path, inputs)), batch, sizes or {})
        # Minutes of work: by now everything that is asked for fits. An engine has its package.
        if package is not None and any(map(candidates.is_the_engine, against)):
            _build_plain_engine(Path(roots[0]), Path(package), setting.plain_engine_dir, progress)
        job = BenchRun(
            candidates=found,
            setting=setting,
            measure=measure or runs_timer(min_time, warmup, threads=threads),
            measure_fresh=measure_fresh or fresh_run,
            progress=progress,
            # Only where something may fail, since proving that all compute the same takes as long
            # as `verify`.
            judged=bool(gates) or ratchet is not None,
        )
        report = job.report(sets, asked, min_time=min_time, warmup=warmup)
    # Figures of a run that failed are not kept as reached.
    if ratchet is not None and report.failure is None:
        words = (candidates.is_the_package, candidates.is_the_original, candidates.is_the_engine)
        packages = [name for name in against if not any(is_word(name) for is_word in words)]
        paths = [*packages, *map(str, npz_files([Path(path) for path in inputs]))]
        keys = {path: path_key(path, ratchet.path) for path in paths}
        figures = bench_figures(report, keys)
        judged = ratchet.judge(figures, machine=machine_of(report))
        report = replace(report, ratchet=judged)
    if output is not None:
        with staged_file(output) as partial:
            about = About(", ".join(map(str, roots)))
            partial.write_text(as_markdown(report.document(), about), encoding="utf-8")
    return report


def _build_plain_engine(engine: Path, package: Path, output: Path, progress: Progress) -> None:
    try:
        find_deployed(engine).build_plain(package, output, progress)
    except BackendError as error:
        raise BackendError(
            f"the baseline '{candidates.PLAIN_ENGINE}' cannot be built: {error.message}",
            hint="Build it where that can be done, moh-deploy build --plain, and name it:"
            " --baseline DIR.",
        ) from error


def _input_sets(
    package: OnnxPackage,
    files: Sequence[Path],
    batch: Sequence[int],
    sizes: Mapping[str, Sequence[int]],
) -> list[InputSet]:
    asked = dict(sizes)
    if batch:
        name = batch_dim(package.manifest)
        if name is None:
            raise ConfigError(
                f"{package.root} has no dynamic batch dimension: it runs at its fixed sizes only.",
                hint="Export it with one: --dynamic NAME:0=batch.",
            )
        asked = {name: batch, **sizes}
    if files and asked:
        raise ConfigError(
            "inputs bring their own sizes, but sizes are asked for too:"
            f" {', '.join(asked)}; expected one of them.",
            hint="Give a file for each size, or leave the files out.",
        )
    found = sized_inputs(package, asked) if asked else input_sets(package, files, [])
    # Other models may take them by their order, which that of a file is not.
    names = [info.name for info in package.manifest.inputs]
    return [
        replace(input_set, inputs={name: input_set.inputs[name] for name in names})
        for input_set in found
    ]
