"""Measure how fast packages run, beside baselines that take turns with them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.atomic import StagedDirectory, staged_file
from moh_deploy.backends.onnxruntime import OrtRunner, open_session, runtime_name
from moh_deploy.backends.runner import Kernels
from moh_deploy.backends.trt.engine_reading import is_engine_dir
from moh_deploy.chooser.machine import Machine
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.jobs.choices import write_choices
from moh_deploy.npz import write_npz
from moh_deploy.package import OnnxPackage, choices_for, with_choices
from moh_deploy.progress import Progress, SilentProgress
from moh_deploy.ratchet.bench_figures import bench_figures, machine_of, require_one_package
from moh_deploy.ratchet.ratchet import Ratchet
from moh_deploy.report.bench import BenchReport, PackageWork
from moh_deploy.report.choices import sizes_text
from moh_deploy.tuning.bench_gates import BenchGate, GateResult, parse_gate
from moh_deploy.tuning.fresh_ort import OrtTask
from moh_deploy.tuning.fresh_run import FreshRun, MeasureFresh, fresh_run
from moh_deploy.tuning.inputs import InputSet, input_sets
from moh_deploy.tuning.latency import Latency, MeasureRuns, Timing, runs_timer
from moh_deploy.tuning.layer_work import layer_work
from moh_deploy.tuning.measured import Measured
from moh_deploy.tuning.sized_inputs import batch_dim, num_samples, sized_inputs
from moh_deploy.tuning.timing import Ratio, ratio

DENSE, FUNCTIONS = "dense", "functions"
DEFAULT_SECONDS, DEFAULT_WARMUP, _MOST_SECONDS = 5.0, 0.5, 3600


def bench(
    package_dirs: Path | str | Sequence[Path | str],
    *,
    baselines: Sequence[Path | str] = (),
    inputs: Sequence[Path | str] = (),
    batch: Sequence[int] = (),
    sizes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    kernels: Kernels = "auto",
    min_time: float = DEFAULT_SECONDS,
    warmup: float = DEFAULT_WARMUP,
    gates: Sequence[str] = (),
    markdown: Path | str | None = None,
    baseline_file: Path | str | None = None,
    update_baseline: bool = False,
    measure: MeasureRuns | None = None,
    measure_fresh: MeasureFresh | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time packages and baselines in turns, and each once more in a process of its own.

    Args:
        package_dirs: The packages, or one.
        baselines: What to compare with: `dense`, the first package with every layer dense;
            `functions`, the first package on function bodies; or another package.
        inputs: npz files to run on, as `run` takes them; without any, the recorded run at the
            example's sizes.
        batch: Sizes of the batch dimension to run at.
        sizes: Other dynamic dimensions to the sizes to run at: all combinations are measured.
            Inputs of sizes that were not recorded are random.
        threads: Threads within an operator; None for ONNX Runtime's own choice.
        kernels: What runs MoH nodes, see `open_session`.
        min_time: Seconds that the contestants run on each set of inputs, all together.
        warmup: Seconds that they run before, untimed.
        gates: Conditions such as `p50 <= 1.05 * baseline`.
        markdown: File to write the report to.
        baseline_file: JSON file of what one package reached before: what is worse fails, see
            `ratchet`.
        update_baseline: Write what is new or better into that file, and make it if it is not there.
        measure: What times contestants; clocks of its own without.
        measure_fresh: What runs a contestant in a process of its own.
        progress: What to report steps to.

    Returns:
        What was measured. Look at `passed`, or call `raise_if_failed`.

    Raises:
        PackageError: Not a package, or one that has changed since it was written.
        ConfigError: An option or a file of inputs does not fit.
        BackendError: One of them is an engine; or ONNX Runtime failed.
    """
    progress = progress or SilentProgress()
    output = None if markdown is None else Path(markdown)
    _check_options(threads, min_time, warmup, output)
    ratchet = Ratchet.open(baseline_file, "bench", update=update_baseline)
    roots = [package_dirs] if isinstance(package_dirs, (Path, str)) else list(package_dirs)
    with StagedDirectory(Path(tempfile.gettempdir(), "moh-deploy-bench")) as scratch:
        with progress.step("reading the packages"):
            contestants = _contestants(roots, baselines, kernels, scratch.path)
            names = [one.name for one in contestants]
            against = [one.name for one in contestants if one.is_baseline]
            if ratchet is not None:
                require_one_package({one.name: one.is_baseline for one in contestants})
            asked = [parse_gate(one, contestants=names, baselines=against) for one in gates]
            sets = _input_sets(contestants[0].package, list(map(Path, inputs)), batch, sizes or {})
        job = _Job(
            contestants=contestants,
            threads=threads,
            measure=measure or runs_timer(min_time, warmup, threads=threads),
            measure_fresh=measure_fresh or fresh_run,
            scratch=scratch.path,
            progress=progress,
        )
        report = job.report(sets, asked, min_time=min_time, warmup=warmup)
    if ratchet is not None and report.failure is None:
        judged = ratchet.judge(bench_figures(report), machine=machine_of(report))
        report = replace(report, ratchet=judged)
    if output is not None:
        with staged_file(output) as partial:
            partial.write_text(report.to_markdown(), encoding="utf-8")
    return report


def parse_sizes(texts: Sequence[str]) -> dict[str, list[int]]:
    """Read `NAME=N`; a name may come several times.

    Raises:
        ConfigError: A text is of another form.
    """
    sizes: dict[str, list[int]] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not name or not number.isdecimal():
            raise ConfigError(f"'{text}' is no size, expected NAME=N, such as seq=512.")
        sizes.setdefault(name, []).append(int(number))
    return sizes


def _check_options(
    threads: int | None, min_time: float, warmup: float, markdown: Path | None
) -> None:
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}, expected at least 1.")
    for name, seconds in (("min_time", min_time), ("warmup", warmup)):
        if not 0 <= seconds <= _MOST_SECONDS:
            raise ConfigError(f"{name} is {seconds:g} s, expected 0 to {_MOST_SECONDS}.")
    if markdown is not None and (markdown.is_dir() or not markdown.resolve().parent.is_dir()):
        raise ConfigError(
            f"{markdown} cannot be written: it is a directory, or its directory does not exist."
        )


@dataclass(frozen=True)
class _Contestant:
    name: str
    package: OnnxPackage
    kernels: Kernels
    is_baseline: bool


def _contestants(
    roots: Sequence[Path | str],
    baselines: Sequence[Path | str],
    kernels: Kernels,
    scratch: Path,
) -> list[_Contestant]:
    if not roots:
        raise ConfigError("there is no package to measure, expected at least one directory.")
    packages = [_open(root) for root in roots]
    contestants = [_Contestant(str(one.root), one, kernels, is_baseline=False) for one in packages]
    for baseline in baselines:
        if baseline == DENSE:
            dense = _dense(packages[0], scratch / DENSE)
            contestants.append(_Contestant(DENSE, dense, kernels, is_baseline=True))
        elif baseline == FUNCTIONS:
            contestants.append(_Contestant(FUNCTIONS, packages[0], "off", is_baseline=True))
        else:
            one = _open(baseline)
            contestants.append(_Contestant(str(one.root), one, kernels, is_baseline=True))
    names = [one.name for one in contestants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"there are {names.count(name)} contestants '{name}', expected one.")
    return contestants


def _open(root: Path | str) -> OnnxPackage:
    if is_engine_dir(root):
        raise BackendError(
            f"{root} is an engine directory: engines run on a GPU, whose time bench cannot measure"
            " yet; it takes packages.",
            hint="trtexec --loadEngine times an engine.",
        )
    return OnnxPackage.open(root)


def _dense(package: OnnxPackage, output: Path) -> OnnxPackage:
    layers = package.manifest.layers
    if not any(map(choices_for, layers)):
        raise ConfigError(
            f"{package.root} has no layer that could be dense: the baseline 'dense' would be the"
            " package itself.",
            hint="`moh-deploy inspect` says why layers were not replaced.",
        )
    return write_choices(package, with_choices(layers, {"all": "dense"}), output)


def _input_sets(
    package: OnnxPackage,
    files: Sequence[Path],
    batch: Sequence[int],
    sizes: Mapping[str, Sequence[int]],
) -> list[InputSet]:
    asked = {**_batch_sizes(package, batch), **sizes}
    if files and asked:
        raise ConfigError(
            "inputs bring their own sizes, but sizes are asked for too:"
            f" {', '.join(asked)}; expected one of them.",
            hint="Give a file for each size, or leave the files out.",
        )
    recorded = input_sets(package, files, [])
    return sized_inputs(package, asked) if asked else recorded


def _batch_sizes(package: OnnxPackage, batch: Sequence[int]) -> dict[str, Sequence[int]]:
    if not batch:
        return {}
    name = batch_dim(package.manifest)
    if name is None:
        raise ConfigError(
            f"{package.root} has no dynamic batch dimension: it runs at its fixed sizes only.",
            hint="Export it with one: --dynamic NAME:0=batch.",
        )
    return {name: batch}


@dataclass(frozen=True)
class _Job:
    """One comparison: who takes part, and how they are measured."""

    contestants: Sequence[_Contestant]
    threads: int | None
    measure: MeasureRuns
    measure_fresh: MeasureFresh
    scratch: Path
    progress: Progress

    def report(
        self,
        sets: Sequence[InputSet],
        gates: Sequence[BenchGate],
        *,
        min_time: float,
        warmup: float,
    ) -> BenchReport:
        with self.progress.step("loading the models"):
            runners = {one.name: self._open(one) for one in self.contestants}
        first = runners[self.contestants[0].name]
        results = [self._measured(one, runners) for one in sets]
        with self.progress.step("counting rows"):
            work = self._work(sets)
        return BenchReport(
            results=tuple(one for each in results for one in each),
            work=work,
            gates=tuple(one for each in results for one in _judged(gates, each)),
            samples_by=batch_dim(self.contestants[0].package.manifest),
            threads=self.threads,
            min_time_s=min_time,
            warmup_s=warmup,
            machine=Machine.this(first.kernels.instruction_set).describe(),
            runtime=runtime_name(),
            kernels=first.kernels,
        )

    def _open(self, one: _Contestant) -> OrtRunner:
        return open_session(one.package, kernels=one.kernels, threads=self.threads)

    def _measured(self, one: InputSet, runners: Mapping[str, OrtRunner]) -> list[Measured]:
        calls = {name: _bound(name, runner, one) for name, runner in runners.items()}
        with self.progress.step(f"timing at {sizes_text(one.sizes)}"):
            times = self.measure(calls)
        with self.progress.step(f"running in fresh processes at {sizes_text(one.sizes)}"):
            fresh = self._fresh_runs(one)
        baselines = [other.name for other in self.contestants if other.is_baseline]
        samples = num_samples(self.contestants[0].package.manifest, one.sizes)

        def measured(contestant: _Contestant) -> Measured:
            name = contestant.name
            return Measured(
                contestant=name,
                is_baseline=contestant.is_baseline,
                inputs=one.name,
                sizes=one.sizes,
                samples=samples,
                latency=Latency.of(times[name]),
                fresh=fresh[name],
                ratios={other: _ratio(times, name, other) for other in baselines if other != name},
            )

        return [measured(contestant) for contestant in self.contestants]

    def _fresh_runs(self, one: InputSet) -> dict[str, FreshRun]:
        inputs = self.scratch / "inputs.npz"
        write_npz(inputs, one.inputs)

        def task(contestant: _Contestant) -> OrtTask:
            package = contestant.package
            compute_type = package.manifest.compute_type
            return OrtTask(
                package.model_path, inputs, self.threads, contestant.kernels, compute_type
            )

        return {each.name: self.measure_fresh(task(each)) for each in self.contestants}

    def _work(self, sets: Sequence[InputSet]) -> tuple[PackageWork, ...]:
        return tuple(
            PackageWork(one.name, inputs.name, inputs.sizes, layers)
            for one in self.contestants
            if not one.is_baseline
            for inputs, layers in zip(
                sets,
                layer_work(one.package, sets, kernels=one.kernels, threads=self.threads),
                strict=True,
            )
        )


def _bound(name: str, runner: OrtRunner, one: InputSet) -> Callable[[], object]:
    try:
        return runner.bound(one.inputs)
    except ConfigError as error:
        raise ConfigError(
            f"{name} does not take the {one.name} inputs of the first package: {error.message}",
            hint=error.hint,
        ) from error


def _ratio(times: Mapping[str, Timing], name: str, other: str) -> Ratio:
    return ratio(times[name].wall_ms, times[other].wall_ms)


def _judged(gates: Sequence[BenchGate], measured: Sequence[Measured]) -> list[GateResult]:
    """Judge every package, not the baselines, on one set of inputs."""
    by_name = {one.contestant: one for one in measured}
    return [gate.judge(one, by_name) for gate in gates for one in measured if not one.is_baseline]
