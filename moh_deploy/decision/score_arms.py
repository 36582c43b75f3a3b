"""Score every labelled sample with every arm, in turns: each batch is run by all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from moh_deploy.decision.arm import OpenedArm, named_errors
from moh_deploy.decision.quality_promise import SampleScores
from moh_deploy.errors import ConfigError
from moh_deploy.system.progress import Progress
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.accuracy.metrics import Metric, MetricScores
from moh_deploy.validate.accuracy.tally import Scored


class ScoreArms(Protocol):
    """Scores samples: `score_arms`, or what does the same by blocks."""

    def __call__(
        self,
        arms: Mapping[str, OpenedArm],
        runs: Sequence[LabelledRun],
        metrics: Sequence[Metric],
        *,
        ignore: int,
        progress: Progress,
    ) -> list[SampleScores]: ...


def score_arms(
    arms: Mapping[str, OpenedArm],
    runs: Sequence[LabelledRun],
    metrics: Sequence[Metric],
    *,
    ignore: int,
    progress: Progress,
) -> list[SampleScores]:
    """Return the scores of all samples that have a label, one entry for each metric.

    Args:
        arms: Open ones, by name.
        runs: The batches, which all arms are given in the same order.
        metrics: What scores.
        ignore: Labels of this number do not count.
        progress: What to report steps to.

    Raises:
        ConfigError: Outputs or labels are not what a metric is of, or no label counts.
        BackendError: The runtime of an arm failed.
    """
    found: dict[str, list[list[MetricScores]]] = {name: [[] for _ in metrics] for name in arms}
    for index, run in enumerate(runs):
        with progress.step(f"scoring batch {index + 1} of {len(runs)}"):
            for name, arm in arms.items():
                for place, run_score in enumerate(run_scores(arm, run, metrics, ignore)):
                    found[name][place].append(run_score)
    return [
        join_scores(metric, {name: scores[place] for name, scores in found.items()})
        for place, metric in enumerate(metrics)
    ]


def run_scores(
    arm: OpenedArm, run: LabelledRun, metrics: Sequence[Metric], ignore: int
) -> list[MetricScores]:
    """Run an arm on one batch, and return the scores of each metric. Raises as `score_arms`."""
    name, batch = arm.arm.name, run.batch
    whole = Scored({}, arm.outputs(batch.inputs), batch.labels).of_valid(run.sample.valid, ignore)
    # Copies that fill up the last batch would count their sample several times.
    real = batch.real(whole.package)
    scores = []
    for metric in metrics:
        if metric.output is not None and metric.output not in real:
            raise ConfigError(
                f"arm '{name}' has no output '{metric.output}', which {metric.name} scores."
            )
        with named_errors(name):
            scores.append(metric.score(real, whole.labels))
    return scores


def join_scores(metric: Metric, parts: Mapping[str, Sequence[MetricScores]]) -> SampleScores:
    """Join batches, and leave out samples of which no label counts."""
    first = next(iter(parts.values()))
    weights = np.concatenate([scores.weights for scores in first])
    # Weights depend on labels alone, so those of one arm stand for all.
    kept = weights > 0
    if not kept.any():
        raise ConfigError("every label is one to be ignored: there is nothing to score.")
    totals = {
        name: np.concatenate([score.totals for score in scores])[kept]
        for name, scores in parts.items()
    }
    return SampleScores(metric, weights[kept], totals)
