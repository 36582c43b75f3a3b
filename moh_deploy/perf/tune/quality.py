"""Judge whether a package in lower precision is still good: on samples, beside the float32 one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from moh_deploy.errors import ValidationError
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.perf.tune.same_outputs import flipped_tokens
from moh_deploy.report.json import in_json
from moh_deploy.runtime.base import Runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.dataset import Batch
from moh_deploy.validate.accuracy.judge import Setting
from moh_deploy.validate.accuracy.judge import judge as judge_metric
from moh_deploy.validate.accuracy.metric_parity import MetricParity
from moh_deploy.validate.accuracy.metrics import Metric
from moh_deploy.validate.accuracy.tally import SampleFiles, Scored, Tally
from moh_deploy.validate.compare.agreement import Flips
from moh_deploy.validate.compare.condition import AccuracyCondition, Condition, FlipsCondition
from moh_deploy.validate.reference.samples import Sample
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN, token_view

FLOAT32_PACKAGE = "the float32 package"
_FEW = 64
"""So many samples tell what is clearly bad, before a candidate is tuned."""


@dataclass(frozen=True)
class JudgedRun:
    """One run of the samples that conditions are judged on.

    Attributes:
        sample: What runs.
        batch: Its labels; None where there are none.
    """

    sample: Sample
    batch: Batch | None = None

    @property
    def samples(self) -> int:
        """How many samples it is; without labels a run is one."""
        return 1 if self.batch is None else len(self.batch.labels)


@dataclass(frozen=True)
class Quality:
    """The figures of a package, each beside the reference's.

    Attributes:
        samples: How many samples were run.
        flips: Tokens that chose other heads.
        accuracy: Of each condition on a metric, in their order.
        failed: A sentence for each condition that does not hold.
    """

    samples: int
    flips: Flips
    accuracy: tuple[MetricParity, ...]
    failed: tuple[str, ...]

    @property
    @in_json()
    def good(self) -> bool:
        """Whether every condition holds."""
        return not self.failed


@dataclass(frozen=True)
class QualityCheck:
    """Judges packages by conditions, all on the same runs.

    Attributes:
        package: The reference, in float32.
        reference: A session of it that returns the gates, too.
        conditions: All of them have to hold.
        metrics: One for each condition on a metric, in their order.
        runs: What is run, at least one.
        files: Where the samples are from.
        ignore: What labels are that do not count.
    """

    package: OnnxPackage
    reference: Runner
    conditions: Sequence[Condition]
    metrics: Sequence[Metric]
    runs: Sequence[JudgedRun]
    files: SampleFiles
    ignore: int

    @property
    def _few(self) -> Sequence[JudgedRun]:
        seen = np.cumsum([run.samples for run in self.runs])
        first = sum(1 for _ in takewhile(lambda total: total < _FEW, seen))
        return self.runs[: first + 1]

    def first_look(self, runner: Runner) -> Quality:
        """Judge a package on few samples: only what is clearly bad fails.

        Args:
            runner: A session of it that returns the gates, too.
        """
        return self._judged(runner, self._few, only_clear=True)

    def judge(self, runner: Runner) -> Quality:
        """Judge a package on all samples; see `first_look`. Not knowing is no pass."""
        return self._judged(runner, self.runs, only_clear=False)

    def _judged(self, runner: Runner, runs: Sequence[JudgedRun], *, only_clear: bool) -> Quality:
        tallies = [Tally(metric) for metric in self.metrics]
        flipped = seen = 0
        for run in runs:
            inputs = run.sample.known.inputs
            # Side by side, so that no more than one run's results are held.
            expected, got = self.reference.run(inputs), runner.run(inputs)
            flips = self._flips(run.sample, expected, got)
            flipped, seen = flipped + flips.tokens, seen + flips.of
            if run.batch is not None:
                self._score(tallies, run.sample, run.batch, expected, got)
        flips = Flips(flipped, seen)
        accuracy = tuple(map(self._accuracy, tallies, self._on_metrics))
        failed = [*_wrong(accuracy, only_clear), *self._too_many(flips, only_clear)]
        return Quality(sum(run.samples for run in runs), flips, accuracy, tuple(failed))

    def _flips(
        self, sample: Sample, expected: Mapping[str, Array], got: Mapping[str, Array]
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
        return Flips(flipped_tokens(expected, got, names, view), int(total))

    def _score(
        self,
        tallies: Sequence[Tally],
        sample: Sample,
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

    @property
    def _on_metrics(self) -> list[AccuracyCondition]:
        return [
            condition for condition in self.conditions if isinstance(condition, AccuracyCondition)
        ]

    def _accuracy(self, tally: Tally, condition: AccuracyCondition) -> MetricParity:
        setting = Setting(FLOAT32_PACKAGE, condition.rule, self.files.place)
        return judge_metric(tally.metric, tally.paired(), setting)

    def _too_many(self, flips: Flips, only_clear: bool) -> list[str]:
        found = []
        for condition in self.conditions:
            if not isinstance(condition, FlipsCondition) or (only_clear and condition.is_share):
                continue
            if flips.tokens > condition.allowed(flips.of):
                found.append(
                    f"{flips.tokens} of {flips.of} tokens chose other heads; asked for:"
                    f" {condition.text.strip()}."
                )
        return found


def _wrong(accuracy: Sequence[MetricParity], only_clear: bool) -> list[str]:
    bad = ("failed",) if only_clear else ("failed", "cannot tell")
    return [str(metric.reason) for metric in accuracy if metric.verdict in bad]
