"""The candidates of a benchmark, which run on the same inputs, and the latency of their runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import onnx

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.forced_gates import fix_routing, fixed_input, routed_values, why_not_fixed
from moh_deploy.package import LayerInfo, OnnxPackage, TensorInfo
from moh_deploy.perf.timing import Calls, TimeDifference, TimeSamples, Turns, settle_seconds
from moh_deploy.runtime.base import Deployed, Model, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.isolate import isolated
from moh_deploy.system.npz import Array, read_npz
from moh_deploy.system.suggest import did_you_mean, shortened
from moh_deploy.validate.compare.tolerances import rules_of
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.samples import match_inputs

# Measure how long single runs of a model take, on the wall and in CPU time.

# A percentile of fewer runs would be the slowest of them, whatever that was.
LEAST_RUNS = {50: 1, 90: 10, 99: 100}
# Bounds memory where a run takes a microsecond and --min-time is long.
_MOST_RUNS = 1_000_000
# Odd, so that the median is one of those kept; enough to draw a distribution from.
_MOST_KEPT = 201
_REFILL_SECONDS = 2e-3


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each run of one candidate."""

    wall_ms: TimeSamples  # on the wall
    cpu_ms: TimeSamples  # of all threads together
    # On the wall, from before CPU time is read to after it is read again: where the machine is
    # busy, this thread may wait in between while others go on.
    around_ms: TimeSamples


MeasureRuns = Callable[[Calls], dict[str, Timing]]
"""Times every run of candidates that take turns."""


def runs_timer(min_seconds: float, warmup_seconds: float, *, threads: int | None) -> MeasureRuns:
    """Return a function that times candidates by both clocks, run by run.

    Args:
        min_seconds: All candidates together run for at least so long.
        warmup_seconds: And for so long before, untimed.
        threads: Of each candidate; several of them spin for a while when they are out of work.
    """
    turns = Turns(
        # In the order of the fields of `Timing`; the first is read closest to the run. CPU time is
        # read between two readings of the wall, so that its share of `around_ms` cannot exceed all
        # cores.
        clocks=(time.perf_counter, time.process_time, time.perf_counter),
        min_seconds=min_seconds,
        warmup_seconds=warmup_seconds,
        # Every run is a sample: averages of several would hide the slow ones from p99.
        least_sample_seconds=0.0,
        most_rounds=_MOST_RUNS,
        settle_seconds=settle_seconds(threads),
        refill_seconds=_REFILL_SECONDS,
    )

    def measure(candidates: Calls) -> dict[str, Timing]:
        return {name: Timing(*samples) for name, samples in turns(candidates).items()}

    return measure


@dataclass(frozen=True)
class Latency:
    """Percentiles, mean and CPU time of the runs of one candidate."""

    runs: int  # how many were timed
    p50_ms: float  # half of the runs took no longer
    p90_ms: float | None  # nine in ten took no longer; None of fewer than 10 runs
    p99_ms: float | None  # 99 in a hundred took no longer; None of fewer than 100 runs
    mean_ms: float  # mean time
    cpu_ms: float  # mean CPU time of a run, all threads together
    # CPU time over time on the wall: 2.0 is two cores that are busy all the time.
    utilisation: float
    # Time of each run, the fastest first; of more than 201 runs, so many of them, evenly spread
    # from the fastest to the slowest.
    sorted_ms: tuple[float, ...] = ()

    @classmethod
    def of(cls, timing: Timing) -> Latency:
        """Return the figures of some runs."""
        samples = timing.wall_ms
        # The smallest sample that so many are not above: no interpolation, a run took this long.
        p50, p90, p99 = (
            float(np.percentile(samples, percent, method="inverted_cdf"))
            if len(samples) >= least
            else None
            for percent, least in LEAST_RUNS.items()
        )
        assert p50 is not None
        # In order; of many, so few that a report can hold them, the fastest and the slowest among
        # them.
        ranks = np.linspace(0, len(samples) - 1, min(len(samples), _MOST_KEPT)).round().astype(int)
        kept = tuple(np.sort(samples)[ranks].tolist())
        mean, cpu, around = map(fmean, (timing.wall_ms, timing.cpu_ms, timing.around_ms))
        utilisation = cpu / around if around else 0.0
        return cls(len(samples), p50, p90, p99, mean, cpu, utilisation, kept)


# The first run of a model in a process that does nothing else: loading, first run, memory.


@dataclass(frozen=True)
class FreshTask:
    """A model to load and run once in a process of its own."""

    model: Model  # what is loaded; it can be pickled
    variant: Variant  # the way in which it is opened
    inputs: Path  # npz file of its inputs, by name or in the model's order


@dataclass(frozen=True)
class FreshRun:
    """The time and memory that a process took to load a model and run it once."""

    # Time on the wall from the file to a model that can run, imports left out; here and below None
    # is for what is not known.
    load_ms: float | None = None
    first_run_ms: float | None = None  # of the first run
    # The most memory that the process ever had, Python and the runtime included; None where the
    # system does not tell.
    peak_memory_bytes: int | None = None


MeasureFresh = Callable[[FreshTask], FreshRun]


def fresh_run(task: FreshTask) -> FreshRun:
    """Run a task in a process of its own.

    Raises:
        BackendError: The process died.
        MoHDeployError: The model cannot be loaded or run there.
    """
    what = f"the process that loads {task.model.name} and runs it once"
    return isolated(_first_run, task).required(what)


def _first_run(task: FreshTask) -> FreshRun:
    # Imports are paid once by a server, whatever it loads, and reading inputs is no part of a
    # model: both come before the clock starts.
    task.model.import_runtime(task.variant.runtime)
    arrays = read_npz(task.inputs, error=BackendError)
    # Loading is from here to a call that can be timed: imports and reading the inputs are before.
    start = time.perf_counter()
    with task.model.open(task.variant) as runner:
        theirs = [spec.name for spec in runner.inputs]
        names = match_inputs(theirs, list(arrays), task.model.name)
        call = runner.bound({name: arrays[ours] for name, ours in names.items()})
        # Binding inputs belongs to loading; the first run may still compile, allocate and pack
        # weights.
        loaded = time.perf_counter()
        call()
        ran = time.perf_counter()
    return FreshRun((loaded - start) * 1e3, (ran - loaded) * 1e3, _peak_memory_bytes())


def _peak_memory_bytes() -> int | None:
    """Ask Linux for this program's own peak: that of `getrusage` counts the parent's, too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    kib = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(name) * 1024 for name in kib), None)


@dataclass(frozen=True)
class LoadedCandidate:
    """A loaded model. Inputs are named as those of the first package, and in that order."""

    name: str  # what reports and gates call it
    runner: Runner  # what runs, open until the benchmark is over
    # The rules of `TOLERANCES` for what it computes in, that of its outputs left out.
    precisions: tuple[str, ...]
    # By the `id` of a set of inputs: what is fed besides, by its own names; nothing for a candidate
    # that takes the inputs alone.
    routed: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)
    alone: tuple[Model, Variant] | None = None  # what a process of its own opens; None if none can

    def outputs(self, input_set: InputSet) -> list[Array]:
        """Run it once and return its outputs, in order.

        Raises:
            ConfigError: It does not take these inputs.
            BackendError: The runtime failed.
        """
        found = self.runner.run(self._feeds(input_set))
        return [found[name] for name in self.runner.outputs]

    def bound(self, input_set: InputSet) -> Callable[[], object]:
        """Return a call that runs it on these inputs: to be timed. Raises as `outputs` does."""
        return self.runner.bound(self._feeds(input_set))

    def _feeds(self, input_set: InputSet) -> dict[str, Array]:
        # By `id`: arrays cannot be hashed, and the benchmark keeps the sets of inputs alive.
        if self.routed:
            return {**input_set.inputs, **self.routed[id(input_set)]}
        return fed_by(input_set, self.runner.inputs, self.name)


@dataclass(frozen=True)
class Candidate:
    """A model that is measured, not loaded."""

    name: str  # what reports and gates call it
    is_baseline: bool  # it is there to be compared with
    model: Model  # what runs
    variant: Variant  # the way in which it is opened

    def load(self, sets: Sequence[InputSet]) -> LoadedCandidate:
        """Load it, to be run on these inputs.

        Raises:
            BackendError, PackageError: See `Model.open`.
        """
        runner = self.model.open(self.variant)
        # A foreign model has no manifest: it is held to the rule of its outputs' dtype
        # alone.
        precisions: tuple[str, ...] = ()
        if isinstance(self.model, Deployed):
            # The manifest says what the graph computes in, the open runner what its kernels round
            # to.
            precisions = rules_of(self.model.manifest.precision, runner)
        return LoadedCandidate(self.name, runner, precisions, alone=self.model.alone(self.variant))


def fed_by(input_set: InputSet, specs: Sequence[TensorInfo], name: str) -> dict[str, Array]:
    """Return inputs by the names that a candidate has for them.

    Raises:
        ConfigError: It does not take them.
    """
    try:
        # By name, or by position where no name is the same: a foreign ONNX file has its
        # own names for the same inputs.
        names = match_inputs([spec.name for spec in specs], list(input_set.inputs), name)
        feeds = {theirs: input_set.inputs[ours] for theirs, ours in names.items()}
        check_inputs(specs, feeds)
    except ConfigError as error:
        raise ConfigError(
            f"{name} does not take the {input_set.name} inputs of the first package:"
            f" {error.message}",
            hint=error.hint,
        ) from error
    return feeds


# Measure what routing costs: a package beside itself without routers, fed what they made.

FIXED = "fixed-routing"


@dataclass(frozen=True)
class FixedRouters:
    """A baseline of the kind `fixed-routing`: which routers it is to do without."""

    name: str  # the baseline: `fixed-routing`, with a colon and a layer's path behind it for one
    layers: tuple[LayerInfo, ...]  # the layers
    layer: str | None  # the path; None for all layers
    why_not: str | None  # why the package cannot run without their routers; None if it can


@dataclass(frozen=True)
class RoutingOverhead:
    """The time that routing takes of a package's, on one set of inputs."""

    contestant: str  # the package
    layer: str | None  # the one layer whose routing was fixed; None for all
    inputs: str  # what it ran on
    sizes: dict[str, int]  # at these sizes
    # Its time minus that with routing fixed; None if that cannot be measured.
    wall_ms: TimeDifference | None
    # The same of CPU time, all threads together, which a busy machine disturbs less.
    cpu_ms: TimeDifference | None
    share: float | None  # the first of the two as a share of its p50
    reason: str | None  # why it cannot be measured


def routers_to_fix(package: OnnxPackage, baseline: str) -> FixedRouters | None:
    """Return which routers a baseline named `fixed-routing` fixes; None for other baselines.

    Raises:
        ConfigError: There is no such layer.
    """
    kind, colon, path = baseline.partition(":")
    if kind != FIXED:
        return None
    layers = package.manifest.layers
    # Without a colon all layers are meant.
    if not colon:
        return FixedRouters(baseline, layers, None, why_not_fixed(_graph(package), layers))
    chosen = tuple(layer for layer in layers if layer.path == path)
    if not chosen:
        paths = [layer.path for layer in layers]
        raise ConfigError(
            f"baseline '{baseline}': there is no layer '{path}'.",
            hint=did_you_mean(path, paths) or f"There are {shortened(paths)}.",
        )
    return FixedRouters(baseline, chosen, path, why_not_fixed(_graph(package), chosen))


@dataclass(frozen=True)
class FixedRouting(Candidate):
    """A package whose routers' results on some inputs are fed to it."""

    package: OnnxPackage  # the package
    layers: tuple[LayerInfo, ...]  # the layers without routers

    def load(self, sets: Sequence[InputSet]) -> LoadedCandidate:
        """Run the package on each set of inputs, and open it without the routers.

        Raises:
            BackendError: The runtime failed.
        """
        # The nodes that are gone run on no kernel, which is not to be refused.
        kernels = "auto" if self.variant.kernels == "require" else self.variant.kernels
        variant = replace(self.variant, kernels=kernels)
        names = routed_values(_graph(self.package), self.layers)
        # The same heads are chosen with and without routers, so that the difference is the routers
        # alone and not the rows of attention.
        with open_runner(self.package, variant.returning(names)) as routing:
            found = [routing.run(input_set.inputs) for input_set in sets]
        # The edit needs dtype and rank only, which are the same in all runs.
        fixed = partial(fix_routing, routed={name: found[0][name] for name in names})
        runner = open_runner(self.package, variant.edited(fixed))
        routed = {
            # Arrays cannot be hashed; the benchmark keeps the sets of inputs alive as long as this.
            id(input_set): {fixed_input(name): values[name] for name in names}
            for input_set, values in zip(sets, found, strict=True)
        }
        rules = rules_of(self.package.manifest.precision, runner)
        return LoadedCandidate(self.name, runner, rules, routed)


def _graph(package: OnnxPackage) -> onnx.GraphProto:
    return onnx.load(package.model_path, load_external_data=False).graph
