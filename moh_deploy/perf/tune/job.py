"""Choose how each layer of a package runs, by measuring, and prove the package as chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from moh_deploy import package as pkg
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.perf.choices_text import gain
from moh_deploy.perf.cost_model.first_choices import SWITCH_MS, by_size, dense_at
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.perf.cost_model.prediction import (
    SpeedByShare,
    platform_of,
    predict,
    speed_by_share,
)
from moh_deploy.perf.environment import Processor
from moh_deploy.perf.timing import Measure, Ratio, TimeSamples, ratio, weighted_sum
from moh_deploy.perf.tune import layers as timed
from moh_deploy.perf.tune.quality import check_same_outputs
from moh_deploy.runtime.base import Description, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.models import runtime_name_of
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.system.progress import Progress
from moh_deploy.validate.compare.parity import compare_recorded
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.layer_values import names_to_return

# Choose from measurements. Where they cannot tell, the prediction does, or else plainness.


def contenders(samples: Mapping[str, TimeSamples]) -> tuple[pkg.Choice, ...]:
    """Return the choices that are not slower than the fastest beyond noise, the plainest first."""
    fastest = min(samples, key=lambda choice: median(samples[choice]))
    return tuple(
        choice
        for choice in pkg.CHOICES
        # The fastest is compared with itself too, is never slower, and so is always among them.
        if choice in samples and not ratio(samples[choice], samples[fastest]).is_slower
    )


def decide(samples: Mapping[str, TimeSamples], predicted_ms: Mapping[str, float]) -> pkg.Choice:
    """Return the fastest choice.

    Args:
        samples: Times of each choice that a layer has.
        predicted_ms: What is predicted for each; nothing where nothing is.

    Returns:
        Of those that are as fast as the fastest, the one that is predicted to be it; without a
        prediction of them the plainest.
    """
    # Among choices that measuring cannot tell apart, the cost model knows better than noise.
    able = contenders(samples)
    known = [choice for choice in able if choice in predicted_ms]
    return min(known, key=lambda choice: predicted_ms[choice]) if known else able[0]


def fastest_there(
    samples: Mapping[str, TimeSamples], predicted_ms: Mapping[str, float], *, otherwise: pkg.Choice
) -> pkg.Choice:
    """Return the fastest choice in one run of the model, if it beats another beyond noise, or else
    that one.

    Args:
        samples: Choice to times of a layer in that run.
        predicted_ms: Choice to what is predicted; nothing where nothing is.
        otherwise: The other choice.
    """
    best = decide(samples, predicted_ms)
    gain_ms = median(samples[otherwise]) - median(samples[best])
    # Being faster is not enough: the If that a choice by size needs takes time itself.
    clearly = ratio(samples[best], samples[otherwise]).is_faster and gain_ms > SWITCH_MS
    return best if clearly else otherwise


@dataclass(frozen=True)
class TuneOutcome:
    """The choices for all layers, and the measurements that they rest on."""

    layers: tuple[pkg.LayerInfo, ...]
    tuning: pkg.Tuning
    # The layers with one choice each, the best for all inputs together.
    one_choice: tuple[pkg.LayerInfo, ...] = ()
    # For each layer and each set of inputs, choice to what is predicted; nothing at all if nothing
    # was measured.
    predicted_ms: tuple[tuple[Mapping[str, float], ...], ...] = ()
    # Paths of layers where measuring could not tell which choice is the fastest.
    # Time of the whole model with the layers' own choices over that with all layers dense, all
    # inputs together; None if it was not measured.
    model_ratio: Ratio | None = None
    # For each set of inputs, the same over `dense` and `one_choice`.
    model_ratios: tuple[Mapping[str, Ratio], ...] = ()
    # Numbers of the sets of inputs on which the whole model was slower with the layers' own
    # choices: there all are dense.
    dense_was_faster: tuple[int, ...] = ()
    # With ranges the whole model was nowhere faster, so they are left out.
    ranges_did_not_pay: bool = False

    @property
    def is_dense(self) -> bool:
        return all(layer.choice in ("dense", None) and not layer.ranges for layer in self.layers)

    @property
    def depends_on_sizes(self) -> bool:
        return any(layer.ranges for layer in self.layers)


class TuneProof(NamedTuple):
    """The result of comparing outputs, see `TuneReport`, and the description of the package."""

    max_abs_error: float
    flipped_tokens: Mapping[str, int]
    described: Description


@dataclass(frozen=True)
class TuneJob:
    """Carries out one tuning of a package."""

    package: pkg.OnnxPackage  # the package
    kernels: KernelUse  # what it runs on
    variant: Variant  # the runtime, and threads within an operator
    one_choice: bool  # no choice depends on sizes
    scratch: Path  # a directory for variants of the package
    progress: Progress  # what to report steps to

    def given(self, choices: Mapping[str, str]) -> TuneOutcome:
        """Return the choices that the user gave; nothing is measured."""
        self._check_anything_to_choose()
        manifest = self.package.manifest
        layers = pkg.with_choices(manifest.layers, choices, dims=list(manifest.dims))
        return TuneOutcome(layers, pkg.Tuning("given", self._machine()))

    def measured(self, sets: Sequence[InputSet], measure: Measure, clock: str) -> TuneOutcome:
        """Choose by measuring: layer by layer, then the whole."""
        self._check_anything_to_choose()
        if self.kernels.library is None:
            raise BackendError(
                "there is nothing to measure without kernels, every choice runs the same function"
                f" bodies; this machine has no kernels: {self.kernels.reason}.",
                hint="`moh-deploy help cpu-kernels` and `help cuda` say what to install. --choose"
                " sets choices without measuring.",
            )
        feeds = [input_set.inputs for input_set in sets]
        with self.progress.step("timing the layers"):
            times = timed.LayerBench(self.package, feeds, self.variant, self.scratch).measure(
                measure
            )
        tuning = pkg.Tuning(
            source="measured",
            machine=self._machine(),
            runtime=runtime_name_of(self.variant.runtime),
            threads=self.variant.threads,
            clock=clock,
            sizes=tuple(input_set.sizes for input_set in sets),
            weights=tuple(input_set.weight for input_set in sets),
            layer_ms=tuple(tuple(map(_medians, time.samples)) for time in times),
        )
        decisions = [
            _decided(layer, time, tuning, one_choice=self.one_choice)
            for layer, time in zip(self.package.manifest.layers, times, strict=True)
        ]
        undecided = tuple(layer.path for layer, _, is_close in decisions if is_close)
        outcome = TuneOutcome(
            layers=tuple(layer for layer, _, _ in decisions),
            tuning=replace(tuning, undecided=undecided),
            one_choice=tuple(flat for _, flat, _ in decisions),
            predicted_ms=tuple(time.predicted_ms for time in times),
        )
        if outcome.is_dense:
            return outcome
        # Not all dense: the sum of layers that gain may still lose, by Ifs, or by data out of the
        # caches.
        return self._checked_as_a_whole(outcome, feeds, measure)

    def predicted_gains(
        self, outcome: TuneOutcome, nodes: Sequence[LayerNodes]
    ) -> tuple[float | None, ...]:
        """Predict how many times as fast as dense the layers are as chosen."""
        sizes, weights = outcome.tuning.sizes, outcome.tuning.weights
        times = outcome.predicted_ms
        # Nothing was measured: at the example's sizes.
        if not times:
            sizes, weights = (self.package.manifest.dims,), (1.0,)
            found = [
                predict(layer, node, self._platform)
                for layer, node in zip(outcome.layers, nodes, strict=True)
            ]
            times = tuple(({} if layer is None else layer.ms,) for layer in found)
        return tuple(
            gain(layer, sizes, weights, ms) for layer, ms in zip(outcome.layers, times, strict=True)
        )

    def predicted_speed(
        self, outcome: TuneOutcome, nodes: Sequence[LayerNodes]
    ) -> SpeedByShare | None:
        """Predict the speed of all layers by the share of open heads, at the example's sizes."""
        return speed_by_share(outcome.layers, nodes, self._platform)

    @property
    def _platform(self) -> Platform:
        variant = self.variant
        return platform_of(self.package.manifest, self.kernels, variant.runtime, variant.threads)

    def prove(self, outcome: TuneOutcome, files: Sequence[InputSet]) -> TuneProof:
        """Compare what the package computes as chosen with what the original model computed.

        Args:
            outcome: The choices.
            files: The user's inputs: on them it is compared with what the package computed before.

        Raises:
            ValidationError: It is not equal.
        """
        with self.progress.step("comparing the outputs"):
            package = self._variant("proof", outcome.layers)
            variant = replace(self.variant, apart=True)  # nothing is timed
            runner = open_runner(package, variant.returning(names_to_return(package)))
            report = compare_recorded(package, variant, runner)
            report.raise_if_unequal()
            flipped = check_same_outputs(self.package, package, runner, files, self.variant)
        return TuneProof(report.max_abs_error, flipped, runner.describe())

    def _checked_as_a_whole(
        self, outcome: TuneOutcome, feeds: Sequence[Mapping[str, Array]], measure: Measure
    ) -> TuneOutcome:
        """Return the outcome with layers made dense where the whole model was slower than dense.

        Layers are timed apart from each other; what counts is the whole model.
        """
        outcome, times = self._timed_as_a_whole(outcome, feeds, measure)
        if outcome.depends_on_sizes and not timed.ranges_pay(times):
            # One choice a layer was timed along with the others, so nothing has to be timed again.
            times = [
                {timed.DENSE: time[timed.DENSE], timed.CHOSEN: time[timed.ONE_CHOICE]}
                for time in times
            ]
            outcome = replace(outcome, layers=outcome.one_choice, ranges_did_not_pay=True)
            outcome = _with_times(outcome, times)
        slower: Sequence[int] = timed.slower_than_dense(times)
        if self.one_choice:
            # Of one choice a layer, all sets of inputs are to be dense or none.
            assert outcome.model_ratio is not None
            slower = range(len(times)) if outcome.model_ratio.is_slower else ()
        if not slower:
            return outcome
        outcome = _dense_at(outcome, slower)
        if outcome.is_dense:
            return outcome
        # Dense at some sizes is another model, with other Ifs: it has to prove itself, once.
        again, times = self._timed_as_a_whole(outcome, feeds, measure)
        still = timed.slower_than_dense(times)
        return _dense_at(again, range(len(times))) if still else again

    def _timed_as_a_whole(
        self, outcome: TuneOutcome, feeds: Sequence[Mapping[str, Array]], measure: Measure
    ) -> tuple[TuneOutcome, timed.ModelTimes]:
        layers = {
            timed.DENSE: pkg.with_choices(outcome.layers, {"all": "dense"}),
            timed.CHOSEN: outcome.layers,
        }
        if outcome.depends_on_sizes:
            layers[timed.ONE_CHOICE] = outcome.one_choice
        with self.progress.step("timing the whole model"):
            packages = {name: self._variant(name, layer) for name, layer in layers.items()}
            times = timed.time_model(packages, feeds, measure=measure, variant=self.variant)
        return _with_times(outcome, times), times

    def _variant(self, name: str, layers: Sequence[pkg.LayerInfo]) -> pkg.OnnxPackage:
        return write_choices(self.package, layers, self.scratch / name)

    def _machine(self) -> str:
        return Processor.this(self.kernels.instruction_set).describe()

    def _check_anything_to_choose(self) -> None:
        if not any(map(pkg.choices_for, self.package.manifest.layers)):
            raise ConfigError(
                f"{self.package.root} has no layer with anything to choose.",
                hint="`moh-deploy inspect` says why layers were not replaced.",
            )


def _with_times(outcome: TuneOutcome, times: timed.ModelTimes) -> TuneOutcome:
    return replace(
        outcome,
        tuning=replace(outcome.tuning, model_ms=tuple(map(_medians, times))),
        model_ratio=timed.chosen_over_dense(times, outcome.tuning.weights),
        model_ratios=tuple(map(timed.chosen_over, times)),
    )


def _dense_at(outcome: TuneOutcome, slower: Sequence[int]) -> TuneOutcome:
    """Let every layer be dense on some sets of inputs; on all if nothing tells them apart."""
    sizes = outcome.tuning.sizes
    layers = [dense_at(layer, sizes, slower) for layer in outcome.layers]
    known = tuple(layer for layer in layers if layer is not None)
    # In some layer no size tells the slower runs apart: then dense everywhere, in all layers alike.
    if len(known) < len(layers):
        known, slower = pkg.with_choices(outcome.layers, {"all": "dense"}), range(len(sizes))
    return replace(outcome, layers=known, dense_was_faster=tuple(slower))


def _decided(
    layer: pkg.LayerInfo, times: timed.LayerTimes, tuning: pkg.Tuning, *, one_choice: bool
) -> tuple[pkg.LayerInfo, pkg.LayerInfo, bool]:
    """Return a layer as chosen, with one choice, and whether measuring could not tell."""
    if not times.samples:
        return layer, layer, False
    weights = tuning.weights
    # All inputs together, each as often as it counts; a choice needs one prediction for all.
    predicted = {
        choice: sum(w * ms[choice] for w, ms in zip(weights, times.predicted_ms, strict=True))
        for choice in times.predicted_ms[0]
    }
    totals = {
        choice: weighted_sum([sample[choice] for sample in times.samples], weights)
        for choice in times.samples[0]
    }
    best = decide(totals, predicted)
    flat = replace(layer, choice=best, ranges=())
    is_close = len(contenders(totals)) > 1
    if one_choice:
        return flat, flat, is_close
    runs = zip(times.samples, times.predicted_ms, strict=True)
    choices = [fastest_there(samples, ms, otherwise=best) for samples, ms in runs]
    # Where sizes do not tell the runs apart, the best for all of them together.
    ranged = by_size(flat, tuning.sizes, choices) or flat
    # With ranges the runs differ clearly, whatever the sum says.
    return ranged, flat, is_close and not ranged.ranges


def _medians(samples: Mapping[Any, TimeSamples]) -> dict[str, float]:
    return {str(name): median(ms) for name, ms in samples.items()}
