"""Judge whether a package in lower precision is still good: on samples, beside the float32 one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from moh_deploy.errors import ValidationError
from moh_deploy.ops.routers import CUSTOM
from moh_deploy.package import LayerInfo, OnnxPackage, Spread, VectorSet, spread
from moh_deploy.report.report import in_json
from moh_deploy.runtime.base import AS_IT_IS, Runner, Variant
from moh_deploy.runtime.open_runner import open_runner, opened_package
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.judge import Setting
from moh_deploy.validate.accuracy.judge import judge as judge_metric
from moh_deploy.validate.accuracy.labelled_runs import Batch, labelled_runs
from moh_deploy.validate.accuracy.metric_parity import MetricParity
from moh_deploy.validate.accuracy.reading import read_labelled
from moh_deploy.validate.accuracy.task import Metric, SampleFiles, Scored, Tally, Task
from moh_deploy.validate.compare.checks import Flips
from moh_deploy.validate.compare.layer_parity import rounded_heads
from moh_deploy.validate.compare.parity import compare, compare_recorded
from moh_deploy.validate.compare.policy import AccuracyCondition, Condition, FlipsCondition
from moh_deploy.validate.reference import samples
from moh_deploy.validate.reference.differences import abs_error
from moh_deploy.validate.reference.input_sets import InputSet, checked_weights, input_sets
from moh_deploy.validate.reference.reference import Subject
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN, TokenView, token_view

NearZero = Mapping[str, Spread]
"""Path of a layer to how far rounding may take gates from 0. Without an entry it may not."""


# Check that a package computes on the user's inputs what it did before it was chosen for.


def check_same_outputs(
    before: OnnxPackage,
    after: OnnxPackage,
    runner: Runner,
    sets: Sequence[InputSet],
    variant: Variant = AS_IT_IS,
) -> dict[str, int]:
    """Compare outputs and gates, with the tolerances of `verify`.

    How close a tie is cannot be known without the original model. So a run in which a token chose
    other heads is not compared, but counted: what the package computes is proven by recorded runs.

    Args:
        before: The package as it was.
        after: The package as chosen.
        runner: A session of it that also returns the gates.
        sets: What to run.
        variant: How the package is opened as it was.

    Returns:
        Name of each set whose outputs were not compared, to how many tokens chose other heads.

    Raises:
        ValidationError: An output or a gate differs.
    """
    flipped: dict[str, int] = {}
    names, layers = before.gate_names, before.manifest.layers
    earlier = open_runner(before, variant.returning(names)) if sets else None
    for input_set in sets:
        assert earlier is not None
        # `runner` may choose other heads than `earlier` where scores are tied within rounding: a
        # sparse layer sums in another order than a dense one.
        expected = earlier.run(input_set.inputs)
        gates = tuple(expected[name] for name in names)
        vectors = VectorSet(
            sizes=input_set.sizes,
            inputs=input_set.inputs,
            outputs={spec.name: expected[spec.name] for spec in before.manifest.outputs},
            gates=gates,
            # Infinite margins [B, S] say that no token was nearly tied, so `compare` excuses no
            # other heads: runs with flips do not get there.
            margins=tuple(np.full(array.shape[:-1], np.inf, np.float32) for array in gates),
        )
        view = samples.own_view(after.manifest, vectors, input_set.name)
        # How far rounding moves two packages apart is not known here, so a gate near 0 is a flip.
        tokens = flipped_tokens(expected, runner.run(input_set.inputs), layers, view, {})
        if tokens:
            flipped[input_set.name] = tokens
            continue
        reference = f"the package as it was, on {input_set.name}"
        compare(after, runner, [vectors], reference=reference).raise_if_unequal()
    return flipped


def flipped_tokens(
    reference: Mapping[str, Array],
    got: Mapping[str, Array],
    layers: Sequence[LayerInfo],
    view: TokenView,
    near_zero: NearZero,
) -> int:
    """Count the tokens that chose other heads, in all layers together.

    Args:
        reference: Results of one package, gates among them.
        got: Those of another.
        layers: What made the gates.
        view: Which tokens count.
        near_zero: Which gates rounding may open or close; see `gates_near_zero`.
    """
    reference, got = view.select(reference), view.select(got)
    tokens = 0
    for layer in layers:
        gates, wanted = got[layer.gates], reference[layer.gates]  # [..., H]
        differ = (gates != 0) != (wanted != 0)
        if layer.path in near_zero:
            limit = near_zero[layer.path]
            rounded = rounded_heads(gates, wanted, limit.largest, layer.num_shared_heads)
            compared = rounded | ((gates != 0) & (wanted != 0))
            error = spread(abs_error(gates, wanted)[compared])
            # As in `verify`, no gate is excused where together they differ by more than rounding.
            if error.rms <= limit.rms and error.largest <= limit.largest:
                differ &= ~rounded
        # A token counts once, however many of its heads changed.
        tokens += int(np.count_nonzero(differ.any(axis=-1)))
    return tokens


def gates_near_zero(package: OnnxPackage, variant: Variant) -> NearZero:
    """Return how far rounding may take gates from 0: the least that `verify` allows in a recorded
    run. They run for this if a router may rank nothing.
    """
    if all(layer.router != CUSTOM.name for layer in package.manifest.layers):
        return {}
    found: dict[str, Spread] = {}
    for layer in compare_recorded(package, variant).layers:
        if layer.agreement is not None:  # the run has tokens
            limit, other = layer.near_zero, found.get(layer.path, layer.near_zero)
            least = Spread(min(limit.rms, other.rms), min(limit.largest, other.largest))
            found[layer.path] = least
    return found


FLOAT32_PACKAGE = "the float32 package"
_FEW = 64
"""So many samples tell what is clearly bad, before a candidate is tuned."""


JudgedRun = tuple[samples.Sample, Batch | None]
"""One run of the samples that conditions are judged on, and its labels or None."""


@dataclass(frozen=True)
class Quality:
    """The figures of a package, each beside the reference's."""

    samples: int  # how many samples were run
    flips: Flips  # tokens that chose other heads
    accuracy: tuple[MetricParity, ...]  # of each condition on a metric, in their order
    failed: tuple[str, ...]  # a sentence for each condition that does not hold

    @property
    @in_json()
    def good(self) -> bool:
        """Tell whether every condition holds."""
        return not self.failed

    @property
    def too_few(self) -> str | None:
        """Why only an equal package can be judged, as samples are too few; None if any can."""
        return next((str(m.reason) for m in self.accuracy if m.verdict == "cannot tell"), None)

    def of_equal(self) -> Self:
        """Return the same of a package that recorded runs have shown to be equal.

        If every sample scores as in the reference, too few of them are no failure.
        """
        same = [
            str(m.reason) for m in self.accuracy if m.verdict == "cannot tell" and not m.changed
        ]
        return replace(self, failed=tuple(reason for reason in self.failed if reason not in same))


@dataclass(frozen=True)
class QualityCheck:
    """Judges packages by conditions, all on the same runs."""

    package: OnnxPackage  # the reference, in float32
    reference: Runner  # a session of it that returns the gates, too
    conditions: Sequence[Condition]  # all of them have to hold
    metrics: Sequence[Metric]  # one for each condition on a metric, in their order
    runs: Sequence[JudgedRun]  # what is run, at least one
    files: SampleFiles  # where the samples are from
    ignore: int  # what labels are that do not count

    def first_look(self, runner: Runner, near_zero: NearZero) -> Quality:
        """Judge a package on few samples: only what is clearly bad fails.

        Args:
            runner: A session of it that returns the gates, too.
            near_zero: Of the package, see `gates_near_zero`.
        """
        seen = np.cumsum([_count(batch) for _, batch in self.runs])
        first = int(np.searchsorted(seen, _FEW))
        return self._judged(runner, near_zero, self.runs[: first + 1], only_clear=True)

    def judge(self, runner: Runner, near_zero: NearZero) -> Quality:
        """Judge a package on all samples; see `first_look`. Not knowing is no pass."""
        return self._judged(runner, near_zero, self.runs, only_clear=False)

    def _judged(
        self, runner: Runner, near_zero: NearZero, runs: Sequence[JudgedRun], *, only_clear: bool
    ) -> Quality:
        tallies = [Tally(metric) for metric in self.metrics]
        flipped = seen = 0
        for sample, batch in runs:
            inputs = sample.known.inputs
            # Side by side, so that no more than one run's results are held.
            expected, got = self.reference.run(inputs), runner.run(inputs)
            flips = self._flips(sample, expected, got, near_zero)
            flipped, seen = flipped + flips.tokens, seen + flips.of
            if batch is not None:
                self._score(tallies, sample, batch, expected, got)
        flips = Flips(flipped, seen)
        accuracy = tuple(
            judge_metric(
                tally.metric,
                tally.paired(),
                Setting(FLOAT32_PACKAGE, condition.rule, self.files.place),
            )
            for tally, condition in zip(
                tallies,
                [entry for entry in self.conditions if isinstance(entry, AccuracyCondition)],
                strict=False,
            )
        )
        bad = ("failed",) if only_clear else ("failed", "cannot tell")
        failed = [str(metric.reason) for metric in accuracy if metric.verdict in bad]
        for condition in self.conditions:
            if not isinstance(condition, FlipsCondition) or (only_clear and condition.is_share):
                continue
            if flips.tokens > condition.allowed(flips.of):
                failed.append(
                    f"{flips.tokens} of {flips.of} tokens chose other heads; asked for:"
                    f" {condition.text.strip()}."
                )
        return Quality(sum(_count(batch) for _, batch in runs), flips, accuracy, tuple(failed))

    def _flips(
        self,
        sample: samples.Sample,
        expected: Mapping[str, Array],
        got: Mapping[str, Array],
        near_zero: NearZero,
    ) -> Flips:
        names = self.package.gate_names
        gates = tuple(expected[name] for name in names)
        known = VectorSet(sample.known.sizes, sample.known.inputs, {}, gates, ())
        view = EVERY_TOKEN
        if sample.valid is not None:
            view = token_view(sample.valid, self.package.manifest, known)
        shown = view.select({name: expected[name] for name in names})
        # Gates [..., H]: a token is one row of them.
        total = sum(array.size // max(1, array.shape[-1]) for array in shown.values())
        layers = self.package.manifest.layers
        return Flips(flipped_tokens(expected, got, layers, view, near_zero), int(total))

    def _score(
        self,
        tallies: Sequence[Tally],
        sample: samples.Sample,
        batch: Batch,
        expected: Mapping[str, Array],
        got: Mapping[str, Array],
    ) -> None:
        names = [spec.name for spec in self.package.manifest.outputs]
        first, second = ({name: side[name] for name in names} for side in (expected, got))
        scored = Scored(first, second, batch.labels).of_valid(sample.valid, self.ignore)
        for name in names:
            if scored.reference[name].shape != scored.package[name].shape:
                raise ValidationError(
                    f"output '{name}' is {list(scored.package[name].shape)} on {sample.label}, and"
                    f" {list(scored.reference[name].shape)} in {FLOAT32_PACKAGE}."
                )
        for tally in tallies:
            tally.add(batch.real(scored.reference), batch.real(scored.package), scored.labels)


def _count(batch: Batch | None) -> int:
    """Return how many samples a run is; without labels it is one."""
    return 1 if batch is None else len(batch.labels)


@dataclass(frozen=True)
class SearchSamples:
    """The inputs of a search: candidates are judged on some, and timed on others."""

    runs: tuple[JudgedRun, ...]  # what conditions are judged on
    sets: tuple[InputSet, ...]  # what is timed
    files: SampleFiles  # where labelled samples are from
    metrics: tuple[Metric, ...] = ()  # what scores them, as the task names them


def read_runs(
    package: OnnxPackage, paths: Sequence[Path], weights: Sequence[float]
) -> SearchSamples:
    """Read files of inputs, each one run; without any, the recorded runs, timed at the first.

    Raises:
        ConfigError: A file or a weight does not fit.
    """
    mask = samples.named_mask(package.manifest, None)
    sets = input_sets(package, paths, weights)
    taken = samples.read_samples(paths, package.manifest, mask)
    if not paths:
        taken = samples.with_valid_tokens(
            samples.recorded_samples(package.vectors), package.manifest, mask
        )
    files = SampleFiles((), ())
    return SearchSamples(tuple((sample, None) for sample in taken), tuple(sets), files)


def read_labelled_runs(
    package: OnnxPackage, paths: Sequence[Path], weights: Sequence[float], task: Task
) -> SearchSamples:
    """Read samples and labels; what is timed is the first batch of each file.

    Raises:
        ConfigError: Something does not fit the model, or each other.
    """
    files = samples.npz_files(paths)
    counts = checked_weights(files, weights)
    data = read_labelled(files, task, package.manifest)
    subject = Subject(opened_package(package), package, "auto")
    by_file = [labelled_runs(subject, dataset, data.axis, task) for dataset in data.datasets]
    sets = [
        # Real samples: how many heads are open decides what is fastest.
        InputSet(first.sample.label, first.sample.known.sizes, first.sample.known.inputs, weight)
        for (first, *_), weight in zip(by_file, counts, strict=True)
    ]
    runs = [(run.sample, run.batch) for runs in by_file for run in runs]
    names = tuple(dataset.samples.name for dataset in data.datasets)
    where = SampleFiles(names, tuple(len(dataset.labels) for dataset in data.datasets))
    return SearchSamples(tuple(runs), tuple(sets), where, data.metrics)
