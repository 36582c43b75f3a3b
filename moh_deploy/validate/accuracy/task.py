"""The task of a model: labels, and the way its outputs are scored with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moh_deploy.errors import ConfigError
from moh_deploy.system.npz import Array
from moh_deploy.system.user_code import describe_error
from moh_deploy.validate.accuracy.class_labels import Labelling
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.metrics import MetricScores, has_nan
from moh_deploy.validate.reference.differences import Float64Array

# A metric that the user wrote: a function of outputs and labels.

ScoreFunction = Callable[[Mapping[str, Array], Array], object]
"""Outputs by name, each [B, ...], and labels [B, ...], to the score of each sample, [B]."""


@dataclass(frozen=True)
class UserMetric:
    """A metric that is the mean of a user's function over samples.

    Attributes:
        name: What the user calls it.
        better: Which scores are better.
        function: What scores a batch.
        output: The one output that it is given, by name; None for all.
    """

    name: str
    better: Better
    function: ScoreFunction
    output: str | None = None
    shifted: bool = False

    def score(self, outputs: Mapping[str, Array], labels: Array) -> MetricScores:
        """Ask the function; see `Metric.score`."""
        given = {self.output: outputs[self.output]} if self.output else dict(outputs)
        try:
            said = np.asarray(self.function(given, labels))
        except Exception as error:
            # Whatever the user's code raises is the user's to read, and no crash of ours.
            raise ConfigError(f"metric '{self.name}' raised {describe_error(error)}.") from error
        if said.shape != (len(labels),) or said.dtype.kind not in "biuf":
            raise ConfigError(
                f"metric '{self.name}' returned {said.dtype}{list(said.shape)} for"
                f" {len(labels)} samples, expected a number for each: [{len(labels)}].",
            )
        # A function may turn NaN into a score, by argmax say: the sample has none all the same.
        of_samples = [array for array in given.values() if array.shape[:1] == (len(labels),)]
        broken = np.any([has_nan(sample) for sample in of_samples], axis=0)
        totals = np.where(broken, np.nan, said.astype(np.float64))
        return MetricScores(totals, np.ones(len(labels)))

    def value(self, means: Float64Array) -> Float64Array:
        """Return the mean score."""
        return means


BUILT_IN_METRICS = ("top-1", "top-5", "perplexity")


@dataclass(frozen=True)
class Task:
    """The labels, metrics and options that a user asked for.

    Attributes:
        labels: A file of `label_files`, a member of the inputs files, or the labels themselves.
        metrics: Of `BUILT_IN_METRICS`, `MODULE:FUNCTION`, or functions; empty to choose by shapes.
        better: Which scores of functions are better.
        output: The output that is scored; None to choose by shapes.
        labelling: How labels of classes are read.
        batch_size: How many samples run at once; None to choose.
        code_dirs: Where modules of metrics are.
        valid_tokens: The input, or member of the files, that says which tokens are no padding.
    """

    labels: Path | str | Array
    metrics: tuple[str | ScoreFunction, ...] = ()
    better: Better | None = None
    output: str | None = None
    labelling: Labelling = field(default_factory=Labelling)
    batch_size: int | None = None
    code_dirs: tuple[Path, ...] = ()
    valid_tokens: str | None = None
