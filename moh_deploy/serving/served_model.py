"""A model in a serving process: it answers batches, and lets observers see the runs."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from moh_deploy.errors import BackendError, ConfigError, MoHDeployError
from moh_deploy.package import Manifest, Runtime, TensorInfo
from moh_deploy.runtime.base import Deployed, Description, Runner, Variant
from moh_deploy.runtime.input_check import check_inputs, empty_axis
from moh_deploy.runtime.models import runtime_for
from moh_deploy.serving.batches import BatchAxis, scalars_of
from moh_deploy.serving.drift.live import LiveDrift, open_live_drift
from moh_deploy.serving.guard.guard import Guard
from moh_deploy.serving.guard.open_guard import open_guard
from moh_deploy.serving.guard.same_answers import Shadow
from moh_deploy.serving.metrics import Family
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.source import BatchSource, Observer, OneModel, ServedRun, open_model
from moh_deploy.serving.telemetry import Telemetry
from moh_deploy.serving.telemetry.otlp import OtlpExport
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import rule_name, tolerance_for
from moh_deploy.validate.reference.samples import check_ranges

# What a container sees of its limit: microseconds of CPU in a period, and the period.
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Reply:
    """The reply to a batch, and which fallback level made it."""

    outputs: Mapping[str, Array]  # name to array, for every output of the model
    rung: str  # what computed it: `kernels`, or the fallback level that took over


class ServedModel:
    """A model that answers batches. Several threads may ask at the same time.

    Args:
        source: Runs it; opened with the inner values that observers may want.
        telemetry: The one of them that counts what routers do; None where none does.
        drift: What compares that with a reference; None without one.
        export: What sends metrics to a collector, once its server starts it; None without one.
    """

    def __init__(
        self,
        model: Deployed,
        source: BatchSource | Runner,
        observers: Sequence[Observer] = (),
        *,
        telemetry: Telemetry | None = None,
        drift: LiveDrift | None = None,
        export: OtlpExport | None = None,
    ) -> None:
        self.model = model
        self.export = export
        self.telemetry = telemetry
        self.inputs: tuple[TensorInfo, ...] = model.manifest.inputs
        self.outputs: tuple[TensorInfo, ...] = model.manifest.outputs
        self.batch_axis = BatchAxis.of(model.manifest)
        self.scalars = scalars_of(model.manifest)
        self._source = OneModel(source) if isinstance(source, Runner) else source
        self._observers = tuple(observers)
        self._drift = drift
        self._names = tuple(info.name for info in self.outputs)

    @property
    def guard(self) -> Guard | None:
        """The guard that judges its answers; None where nothing does."""
        return self._source if isinstance(self._source, Guard) else None

    def check(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """Check the inputs of a request, and return the sizes of its dynamic dimensions.

        Raises:
            ConfigError: A name, dtype, rank or size is wrong, or was refused at export.
        """
        sizes = check_inputs(self.inputs, inputs)
        if self.batch_axis is not None and not self.batch_axis.size(inputs):
            raise ConfigError("the batch is empty, expected 1 sample or more.")
        if isinstance(self.model.manifest, Manifest):
            check_ranges(sizes, self.model.manifest)
        return sizes

    def answer(self, inputs: Mapping[str, Array], sizes: Sequence[int] = ()) -> Reply:
        """Answer a batch of requests.

        Args:
            sizes: Samples of each request in it; empty for a single request.

        Raises:
            ConfigError: The inputs do not fit the model.
            BackendError: The runtime failed.
        """
        dims = self.check(inputs)
        wanted = tuple({name: None for each in self._observers for name in each.wanted(dims)})
        samples = 1 if self.batch_axis is None else self.batch_axis.size(inputs)
        parts = tuple(sizes) or (samples,)
        try:
            ran = self._source.run(inputs, self._names, wanted, len(parts))
        except BackendError as error:
            if empty_axis(self.inputs, inputs) is None:
                raise
            raise ConfigError(error.message, hint=error.hint) from error
        run = ServedRun(inputs, dims, ran.results, parts, ran.seconds, ran.rung)
        for observer in self._observers:
            observer.saw(run)
        return Reply({name: ran.results[name] for name in self._names}, ran.rung)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once, to try it: it is no request, and no observer sees it.

        Raises:
            ConfigError: The inputs do not fit the model.
            BackendError: The runtime failed.
        """
        return dict(self._source.run(inputs, self._names, (), 1).results)

    def describe(self) -> Description:
        """Describe the operators that run each layer."""
        return self._source.describe()

    def families(self) -> tuple[Family, ...]:
        """Return what was counted so far."""
        own = self._source.families()
        seen = (family for observer in self._observers for family in observer.families())
        others = (source.families() for source in (self._drift, self.export) if source is not None)
        return (*own, *seen, *(family for families in others for family in families))

    def close(self) -> None:
        """Send metrics a last time, and give back what the runner and the observers hold."""
        if self.export is not None:
            self.export.close()
        for observer in self._observers:
            observer.close()
        self._source.close()


def open_served(
    model: Deployed, settings: ServingSettings, *, is_restart: bool = False
) -> ServedModel:
    """Open a package or engine to be served; of a package a known answer is tried.

    Args:
        is_restart: A process before this one has served it.

    Raises:
        ValidationError: It answers a recorded run wrongly.
        BackendError: The runtime is not there, or refuses the model.
        PackageError: It cannot be read, or has changed since it was written.
        ConfigError: The guard's policy is wrong, a package beside takes or returns others, the
            reference is not of this package, or OpenTelemetry's exporter is not installed.
    """
    export: OtlpExport | None = None
    if settings.otlp is not None:  # First: it may not be installed, and a model takes long.
        export = OtlpExport(settings.otlp, model=settings.name, version=settings.version)
    way = served_variant(settings, runtime_for(settings.runtime, model.preferred_runtime))
    telemetry = drift = None
    # An engine was compiled without its gates: nothing of its routing can be read.
    if not model.is_compiled:
        telemetry = Telemetry(
            model.made_from(None),
            model=settings.name,
            version=settings.version,
            sample_every=settings.sample_every,
            per_head=settings.per_head,
        )
    if settings.reference is not None:
        if telemetry is None:
            raise ConfigError(
                f"{model.name} is an engine, whose routing cannot be read: there is nothing to"
                " compare with a reference.",
                hint="Serve the package, or leave the reference out.",
            )
        drift = open_live_drift(Path(settings.reference), telemetry)
    observers: tuple[Observer, ...] = () if telemetry is None else (telemetry,)
    if settings.shadow is not None:
        observers += (Shadow(model, Path(settings.shadow), settings.shadow_share, way),)
    inner = tuple({name: None for observer in observers for name in observer.inner})
    source: BatchSource = (
        open_guard(model, settings, inner, way, is_restart=is_restart)
        if settings.guard
        else open_model(model, inner, way)
    )
    return ServedModel(model, source, observers, telemetry=telemetry, drift=drift, export=export)


def _telemetry(model: Deployed, settings: ServingSettings) -> Telemetry | None:
    # An engine was compiled without its gates: nothing of its routing can be read.
    if model.is_compiled:
        return None
    return Telemetry(
        model.made_from(None),
        model=settings.name,
        version=settings.version,
        sample_every=settings.sample_every,
        per_head=settings.per_head,
    )


def _drift(
    model: Deployed, settings: ServingSettings, telemetry: Telemetry | None
) -> LiveDrift | None:
    if settings.reference is None:
        return None
    if telemetry is None:
        raise ConfigError(
            f"{model.name} is an engine, whose routing cannot be read: there is nothing to compare"
            " with a reference.",
            hint="Serve the package, or leave the reference out.",
        )
    return open_live_drift(Path(settings.reference), telemetry)


def served_variant(settings: ServingSettings, runtime: Runtime = "onnxruntime") -> Variant:
    """Return the way in which whatever answers is opened: runtime, threads and kernels."""
    library = None if settings.library is None else Path(settings.library)
    # A server waits more than it runs, and beside other processes.
    return Variant(runtime, threads=threads_of(settings), spins=False, library=library)


def threads_of(settings: ServingSettings) -> int:
    """Return the threads of an instance: instances by threads are the cores of this machine."""
    # Servers of ONNX Runtime become slow with more threads than cores.
    return settings.threads or max(1, cores() // settings.instances)


def cores() -> int:
    """Return the number of cores that this process may use, within a container's limit."""
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:
        quota, period = map(int, _CPU_MAX.read_text().split())
    except (OSError, ValueError):  # not in a container, or "max 100000"
        return allowed
    return min(allowed, max(1, math.ceil(quota / period))) if period else allowed


Tensors: TypeAlias = Mapping[str, Array]
# Answers a batch, as `ServedModel.answer` does.
Answering: TypeAlias = Callable[[Tensors, Sequence[int]], Reply]


def answer_batch(
    answer: Answering, axis: BatchAxis | None, requests: Sequence[Tensors]
) -> Iterator[Reply | Exception]:
    """Yield the reply to each request, or its error, in their order.

    A request of an unknown token must not fail those that it was joined with: where the batch
    fails, each of several is run again alone, and yielded as soon as it is known.

    Args:
        axis: The axis that requests are joined on; None where each runs alone.
        requests: Name to array; they were checked, and have equal keys of the axis.
    """
    try:
        if axis is None:
            replies = [answer(inputs, ()) for inputs in requests]
        else:
            sizes = [axis.size(inputs) for inputs in requests]
            reply = answer(axis.joined(requests), sizes)
            replies = [Reply(part, reply.rung) for part in axis.split(reply.outputs, sizes)]
    except Exception as error:
        if len(requests) == 1:
            yield error
            return
        for inputs in requests:
            yield from answer_batch(answer, axis, [inputs])
        return
    yield from replies


def find_joining(served: ServedModel) -> tuple[BatchAxis | None, str | None]:
    """Return the axis that requests of a model are joined on, or why each has to run alone.

    A first axis that is dynamic everywhere may count samples that depend on each other: a model
    that norms over it would answer a request with numbers that come of the values in another. So a
    recorded run of several samples is repeated with all of them replaced by the first, and by the
    last: where that is answered as before, the others have no part in its answer.

    Raises:
        BackendError: The model does not run.
    """
    axis = served.batch_axis
    if axis is None:
        return None, "its inputs and outputs have no first axis in common that is dynamic"
    try:
        vectors = served.model.made_from(None).vectors
    except MoHDeployError:  # an engine has no recorded runs
        vectors = ()
    unequal = (
        run
        for run in vectors
        if any((array != array[:1]).any() for array in run.inputs.values() if len(array) > 1)
    )
    recorded = next(unequal, None)
    if recorded is None:
        return None, "no recorded run has several samples, to try whether they are independent"
    whole = served.run(recorded.inputs)
    samples = axis.size(recorded.inputs)
    allowed = tolerance_for(rule_name(served.model.manifest.precision)).relative
    for index in (0, samples - 1):
        same = {
            name: np.repeat(array[index : index + 1], samples, axis=0)
            for name, array in recorded.inputs.items()
        }
        for name, got in served.run(same).items():
            before = whole[name]
            if len(before) != samples or not _is_close(
                got[index : index + 1], before[index : index + 1], allowed
            ):
                return None, f"output '{name}' of a sample depends on the other samples"
    return axis, None


def _is_close(got: Array, expected: Array, relative: float) -> bool:
    if expected.dtype.kind in "biu":
        return np.array_equal(got, expected)
    wide_got, wide = got.astype(np.float64), expected.astype(np.float64)
    finite = np.abs(wide[np.isfinite(wide)])
    limit = relative * max(1.0, float(finite.max(initial=0)))
    return bool(np.allclose(wide_got, wide, rtol=0, atol=limit, equal_nan=True))
