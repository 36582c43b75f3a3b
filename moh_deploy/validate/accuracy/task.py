"""The task of a model: labels, and the way its outputs are scored with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.class_labels import Labelling
from moh_deploy.validate.accuracy.metric_parity import Better
from moh_deploy.validate.accuracy.user_metric import ScoreFunction

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
