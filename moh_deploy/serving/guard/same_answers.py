"""Compare the answers of two models by `verify`'s rules, beside serving: spot checks, a shadow."""

import math
import queue
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Deployed, Description, ModelInterface, Variant
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.serving.metrics import Family, Series, single
from moh_deploy.serving.source import ComputedResults, ServedRun
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.reference.layer_values import (
    LayerValues,
    Recorder,
    layer_values,
    names_to_return,
)

Job = Callable[[], None]


class BackgroundJobs:
    """A thread that runs jobs beside the answers, one after the other.

    The queue is bounded: a job that finds it full is dropped and counted. So slow comparisons delay
    no answer, and take bounded memory.
    """

    def __init__(self, name: str, most_waiting: int = 4) -> None:
        self.dropped = 0  # jobs that found the queue full
        self.failed = 0  # jobs that raised
        self._jobs: queue.Queue[Job | None] = queue.Queue(most_waiting)
        self._lock = threading.Lock()
        self._closing = False
        # A daemon: a job that hangs keeps no process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Hand over a job, and tell whether there was room for it."""
        if self._closing:
            return False
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            with self._lock:
                self.dropped += 1
            return False
        return True

    def wait(self) -> None:
        """Wait until all jobs that were handed over are done."""
        self._jobs.join()

    def close(self, timeout_s: float = 10.0) -> None:
        """Finish the job at hand, drop the others, and end the thread."""
        self._closing = True
        with suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
                self._jobs.task_done()
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # whatever it is, the next job goes on
                self.failed += 1
            self._jobs.task_done()
        self._jobs.task_done()


@dataclass(frozen=True)
class Comparison:
    """Compares the answers of a package with those of a reference."""

    package: OnnxPackage
    layers: tuple[LayerValues, ...]  # of the package
    recorder: Recorder  # runs the reference
    reference: str  # its name in reports
    has_routing: bool = True  # both have the same layers, so that gates are compared as well

    def report(
        self,
        inputs: Mapping[str, Array],
        results: Mapping[str, Array],
        description: Description,
        variant: Variant,
    ) -> ParityReport:
        """Run the reference on the inputs of a request, and compare the package's results.

        After a routing tie `variant` opens the package again, with the gates of the reference.
        """
        expected = self.recorder.record(inputs)
        inner = (name for layer in self.layers for name in layer.names)
        if not results.keys() >= set(inner):
            expected = replace(expected, scores=(), attention=())
        has_gates = self.has_routing and results.keys() >= set(self.package.gate_names)
        return compare(
            self.package,
            ComputedResults(results, self.package.manifest.inputs, description),
            [expected],
            reference=self.reference,
            outputs_only=not has_gates,
            variants=PackageVariants(self.package, replace(variant, extra_outputs=())),
        )


def require_same_interface(name: str, ours: ModelInterface, theirs: ModelInterface) -> None:
    """Check that names, dtypes and ranks of inputs and outputs agree; `name` is the second model.

    Raises:
        ConfigError: They differ.
    """
    for kind in ("inputs", "outputs"):
        expected, got = (
            sorted(
                (tensor.name, tensor.dtype, len(tensor.shape)) for tensor in getattr(model, kind)
            )
            for model in (ours, theirs)
        )
        if got != expected:
            raise ConfigError(
                f"{name} has the {kind} {got}, expected {expected}.",
                hint="Both are given the same requests: names, dtypes and ranks have to agree.",
            )


_OUTCOMES = {
    "equal": "equal",
    "within tolerance": "equal",
    "not equal": "differing",
    "cannot tell": "undecided",
}
_KEPT_REASONS = 20


class Shadow:
    """Observes a served model, and compares a second package with it on a share of the batches.

    So an upgrade is judged on live requests before it serves. The shadow runs on a thread of its
    own, after the answer was sent. A batch that arrives while it is behind is dropped and counted.

    Raises:
        ConfigError: It has other inputs or outputs, or the share is out of range.
        PackageError: It is no package.
        BackendError: It cannot be loaded.
    """

    def __init__(self, model: Deployed, other: Path, share: float, way: Variant) -> None:
        if not 0 < share <= 1:
            raise ConfigError(f"the share of the shadow is {share:g}, expected above 0, at most 1.")
        if model.is_compiled:
            raise ConfigError(f"{model.name} is an engine: only a package can have a shadow.")
        ours, shadow = model.made_from(None), find_deployed(other)
        if shadow.is_compiled:
            raise ConfigError(f"{shadow.name} is an engine, expected a package.")
        theirs = shadow.made_from(None)
        require_same_interface(f"the shadow {other}", model.manifest, theirs.manifest)
        self._way = replace(way, runtime=runtime_for(None, shadow.preferred_runtime))
        self._runner = shadow.open(self._way.returning(names_to_return(theirs)))
        recorder = Recorder(theirs, self._runner, layer_values(theirs))
        heads, their_heads = (
            [(layer.path, layer.num_heads) for layer in package.manifest.layers]
            for package in (ours, theirs)
        )
        has_routing = heads == their_heads
        self._comparison = Comparison(ours, layer_values(ours), recorder, shadow.name, has_routing)
        # Gates are of use only where the shadow has the same layers.
        self.inner = ours.gate_names if has_routing else ()
        self._description = self._runner.describe()
        compute_type = ours.manifest.compute_type
        if compute_type != "float32":
            # Products are rounded as the coarser of the two packages rounds them.
            kernels = replace(self._description.kernels, asked_compute_type=compute_type)
            self._description = replace(self._description, kernels=kernels)
        self.counts = dict.fromkeys(("equal", "differing", "undecided", "failed"), 0)
        self.max_abs_error = 0.0  # the largest difference of an output that is judged
        self.reasons: deque[str] = deque(maxlen=_KEPT_REASONS)  # of differences and failures
        self._share = share
        self._background = BackgroundJobs("shadow", most_waiting=8)
        self._draw = random.Random(0)
        self._chosen = threading.local()
        self._lock = threading.Lock()

    def wanted(self, dims: Mapping[str, int]) -> tuple[str, ...]:
        """Choose the run, or not, and return the gates that are wanted of a chosen one."""
        with self._lock:
            self._chosen.run = self._draw.random() < self._share
        return self.inner if self._chosen.run else ()

    def saw(self, run: ServedRun) -> None:
        """Hand a chosen run over to the shadow's thread."""
        if not getattr(self._chosen, "run", False):
            return
        # The buffers may be a client's, gone when it has its answer.
        inputs = {name: np.array(array) for name, array in run.inputs.items()}
        results = {name: np.array(array) for name, array in run.results.items()}
        self._background.submit(lambda: self._compare(inputs, results))

    def wait(self) -> None:
        """Wait until all that was handed over is compared."""
        self._background.wait()

    def families(self) -> tuple[Family, ...]:
        """Return the metrics of comparisons."""
        with self._lock:
            counts = {**self.counts, "dropped": self._background.dropped}
        return (
            Family(
                "moh_shadow_batches_total",
                "Batches that the shadow package was to run too, by outcome of the comparison.",
                "counter",
                tuple(Series({"outcome": name}, count) for name, count in counts.items()),
            ),
            single(
                "moh_shadow_max_abs_error",
                "gauge",
                self.max_abs_error,
                "The largest difference of an output between the shadow package and the answers.",
            ),
        )

    def close(self) -> None:
        """End the thread, and close the shadow."""
        self._background.close()
        self._runner.close()

    def _compare(self, inputs: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        try:
            report = self._comparison.report(inputs, results, self._description, self._way)
            outcome, reasons = _OUTCOMES[report.verdict], report.reasons[:1]
            error = report.max_abs_error
        except MoHDeployError as failure:
            outcome, reasons, error = "failed", (failure.message,), 0.0
        with self._lock:
            self.counts[outcome] += 1
            # NaN compares with nothing: it is the largest.
            if not (math.isnan(self.max_abs_error) or error <= self.max_abs_error):
                self.max_abs_error = error
            self.reasons.extend(reason[:500] for reason in reasons)
