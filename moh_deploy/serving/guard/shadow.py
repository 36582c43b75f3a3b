"""Run a second package beside the first on a share of the traffic, and compare by `verify`'s rules.

An upgrade is judged on live requests before it serves. The shadow runs on a thread of its own,
after the answer was made; it changes none, and what comes while it is behind is dropped and
counted.
"""

from __future__ import annotations

import math
import random
import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Deployed, Description, Variant
from moh_deploy.runtime.models import runtime_for
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.guard.aside import Aside
from moh_deploy.serving.guard.same_answers import Comparison
from moh_deploy.serving.guard.same_interface import require_same_interface
from moh_deploy.serving.metrics import Family, Series
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.function_bodies import Recorder
from moh_deploy.validate.reference.layer_values import layer_values, names_to_return

if TYPE_CHECKING:
    from moh_deploy.serving.served_model import ServedRun

_KEPT_REASONS = 20


@dataclass(frozen=True)
class ShadowReport:
    """Counts of the comparisons so far, by outcome.

    Attributes:
        shadow: The second package.
        compared: Batches that were compared.
        equal: Those of them where all is equal by `verify`'s rules, ties of routers explained.
        differing: Those where something is not.
        undecided: Those where it cannot be told.
        failed: Batches that the shadow could not run.
        dropped: Batches that were chosen while the shadow was behind.
        max_abs_error: The largest difference of an output that is judged.
        reasons: The last sentences on what is not equal.
    """

    shadow: str
    compared: int
    equal: int
    differing: int
    undecided: int
    failed: int
    dropped: int
    max_abs_error: float
    reasons: tuple[str, ...]


class Shadow:
    """Observes a served model, and compares a second package with it.

    Args:
        comparison: Compares what serves with the shadow, the reference.
        served: How what serves is opened.
        share: Of the batches.
        most_waiting: So many batches may wait.
    """

    def __init__(
        self,
        comparison: Comparison,
        served: Variant,
        share: float,
        most_waiting: int = 8,
    ) -> None:
        # Gates are of use only where the shadow has the same layers.
        self.inner = comparison.package.gate_names if comparison.has_routing else ()
        self._comparison = comparison
        self._runner = comparison.recorder.runner
        self._description = _of_both(self._runner.describe(), comparison.package)
        self._served = served
        self._share = share
        self._aside = Aside("shadow", most_waiting)
        self._draw = random.Random(0)
        self._chosen = threading.local()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._largest = 0.0
        self._reasons: deque[str] = deque(maxlen=_KEPT_REASONS)

    def wanted(self, dims: Mapping[str, int]) -> tuple[str, ...]:
        """Choose the run, or not: gates are wanted of those that are compared."""
        with self._lock:
            self._chosen.run = self._draw.random() < self._share
        return self.inner if self._chosen.run else ()

    def saw(self, run: ServedRun) -> None:
        """Hand a chosen run over to the thread beside."""
        if not getattr(self._chosen, "run", False):
            return
        # Copied: buffers may be a client's, gone once it has its answer.
        inputs = {name: np.array(one) for name, one in run.inputs.items()}
        results = {name: np.array(one) for name, one in run.results.items()}
        self._aside.submit(lambda: self._compare(inputs, results))

    def wait(self) -> None:
        """Wait until all that was handed over is compared."""
        self._aside.wait()

    def report(self) -> ShadowReport:
        """Return what came of it so far."""
        with self._lock:
            counts, largest, reasons = dict(self._counts), self._largest, tuple(self._reasons)
        equal, differing, undecided, failed = (
            counts.get(one, 0) for one in ("equal", "differing", "undecided", "failed")
        )
        return ShadowReport(
            shadow=self._comparison.reference,
            compared=equal + differing + undecided,
            equal=equal,
            differing=differing,
            undecided=undecided,
            failed=failed,
            dropped=self._aside.dropped,
            max_abs_error=largest,
            reasons=reasons,
        )

    def families(self) -> tuple[Family, ...]:
        """Return what came of it so far, as metrics."""
        found = self.report()
        counts = {
            name: float(getattr(found, name))
            for name in ("equal", "differing", "undecided", "failed", "dropped")
        }
        return (
            Family(
                "moh_shadow_batches_total",
                "Batches that were run on the shadow package too, and what came of comparing.",
                "counter",
                tuple(Series({"outcome": name}, value) for name, value in counts.items()),
            ),
            Family(
                "moh_shadow_max_abs_error",
                "The largest difference of an output between the shadow package and the answers.",
                "gauge",
                (Series({}, found.max_abs_error),),
            ),
        )

    def close(self) -> None:
        """End the thread, and give back the shadow."""
        self._aside.close()
        self._runner.close()

    def _compare(self, inputs: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        try:
            report = self._comparison.report(inputs, results, self._description, self._served)
        except MoHDeployError as error:
            with self._lock:
                self._counts["failed"] += 1
                self._reasons.append(error.message[:500])
            return
        with self._lock:
            self._counts[_OUTCOMES[report.verdict]] += 1
            # NaN compares with nothing: it is the largest.
            if not (math.isnan(self._largest) or report.max_abs_error <= self._largest):
                self._largest = report.max_abs_error
            self._reasons.extend(one[:500] for one in report.reasons[:1])


_OUTCOMES = {"equal": "equal", "within tolerance": "equal"}
_OUTCOMES |= {"not equal": "differing", "cannot tell": "undecided"}


def open_shadow(model: Deployed, other: Path, share: float, way: Variant) -> Shadow:
    """Open a second package to run beside a model.

    Args:
        model: What serves.
        other: The second package.
        share: Of the batches, above 0 and at most 1.
        way: How it is opened: threads, kernels.

    Raises:
        ConfigError: It does not take and return the same, or the share is no share.
        PackageError: It is no package.
        BackendError: It cannot be loaded.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of the shadow is {share:g}, expected above 0, at most 1.")
    if model.is_compiled:
        raise ConfigError(f"{model.name} is an engine: only a package can have a shadow.")
    ours, shadow = model.made_from(None), find_deployed(other)
    if shadow.is_compiled:
        raise ConfigError(f"{shadow.name} is an engine, expected a package.")
    theirs = shadow.made_from(None)
    require_same_interface(f"the shadow {other}", model.manifest, theirs.manifest)
    way = replace(way, runtime=runtime_for(None, shadow.preferred_runtime))
    runner = shadow.open(way.returning(names_to_return(theirs)))
    recorder = Recorder(theirs, runner, layer_values(theirs))
    has_routing = _heads(ours) == _heads(theirs)
    comparison = Comparison(ours, layer_values(ours), recorder, shadow.name, has_routing)
    return Shadow(comparison, way, share)


def _heads(package: OnnxPackage) -> list[tuple[str, int]]:
    return [(layer.path, layer.num_heads) for layer in package.manifest.layers]


def _of_both(shadow: Description, ours: OnnxPackage) -> Description:
    """Return what ran, rounding products as the coarser of the two packages lets kernels do."""
    if ours.manifest.compute_type == "float32":
        return shadow
    kernels = replace(shadow.kernels, asked_compute_type=ours.manifest.compute_type)
    return replace(shadow, kernels=kernels)
