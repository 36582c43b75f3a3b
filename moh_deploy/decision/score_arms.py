"""Score every labelled sample with every arm, in turns: each batch is run by all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx

from moh_deploy import __version__
from moh_deploy.decision.arm import Arm, OpenedArm, named_errors
from moh_deploy.decision.quality_promise import SampleScores
from moh_deploy.errors import ConfigError
from moh_deploy.runtime.models import OnnxFile, PackageDir
from moh_deploy.system.bounded_file import sha256_of, sha256_of_json
from moh_deploy.system.npz import Array, read_npz, write_npz
from moh_deploy.system.progress import Progress
from moh_deploy.system.staging import staged_file
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.accuracy.metrics import Metric, MetricScores
from moh_deploy.validate.accuracy.tally import Scored
from moh_deploy.validate.accuracy.task import UserMetric
from moh_deploy.validate.reference.differences import Float64Array


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


# Score labelled samples in blocks, which are kept on disk, and may be run by other machines.
#
# A block is a few runs of one arm. Runs are the same as without blocks, each with the same samples
# in it, so scores are the same bit for bit wherever, and in whatever order, blocks are run.

RUNS_OF_A_BLOCK = 8

BlockScores = list[list[MetricScores]]
"""Of each run of a block, of each metric."""


@dataclass(frozen=True)
class ArmBlock:
    """A few runs of one arm that are scored together: what is kept, spread and resumed.

    Attributes:
        arm: The arm, open in this process.
        start: The first of its runs.
        runs: The samples.
        metrics: What scores them.
        ignore: Labels of this number do not count.
    """

    arm: OpenedArm
    start: int
    runs: Sequence[LabelledRun]
    metrics: Sequence[Metric]
    ignore: int

    @property
    def key(self) -> tuple[str, int]:
        return self.arm.arm.name, self.start

    def scored(self) -> BlockScores:
        """Run it in this process. Raises as `score_arms` does."""
        return [run_scores(self.arm, run, self.metrics, self.ignore) for run in self.runs]


ScoreBlocks = Callable[[Sequence[ArmBlock]], Iterator[tuple[ArmBlock, BlockScores]]]
"""Runs blocks, and yields each with its scores as it is done, in any order."""


def score_here(blocks: Sequence[ArmBlock]) -> Iterator[tuple[ArmBlock, BlockScores]]:
    """Run blocks in this process, one after the other."""
    for block in blocks:
        yield block, block.scored()


@dataclass(frozen=True)
class BlockScorer:
    """Scores as `score_arms` does, by blocks.

    Attributes:
        subject: What scores depend on besides an arm: digests of the plan and of its data.
        kept: A directory where scores of blocks stay until another call wants them; None to keep
            none.
        score: What runs blocks.
    """

    subject: Mapping[str, str]
    kept: Path | None = None
    score: ScoreBlocks = score_here

    def __call__(
        self,
        arms: Mapping[str, OpenedArm],
        runs: Sequence[LabelledRun],
        metrics: Sequence[Metric],
        *,
        ignore: int,
        progress: Progress,
    ) -> list[SampleScores]:
        """Return the scores of all samples that have a label. See `score_arms`."""
        blocks = [
            ArmBlock(arm, start, runs[start : start + RUNS_OF_A_BLOCK], metrics, ignore)
            for start in range(0, len(runs), RUNS_OF_A_BLOCK)
            for arm in arms.values()
        ]
        files = self._files(arms, blocks)
        found = {
            block.key: _read(files[block.key], block)
            for block in blocks
            if block.key in files and files[block.key].exists()
        }
        missing = [block for block in blocks if block.key not in found]
        with progress.step(f"scoring {len(missing)} blocks, {len(found)} are kept of before"):
            for block, scores in self.score(missing):
                found[block.key] = scores
                if block.key in files:
                    _write(files[block.key], scores)
        return [
            join_scores(metric, {name: _of_arm(found, name, place) for name in arms})
            for place, metric in enumerate(metrics)
        ]

    def _files(
        self, arms: Mapping[str, OpenedArm], blocks: Sequence[ArmBlock]
    ) -> dict[tuple[str, int], Path]:
        """Return where the scores of each block are kept, of arms whose content can be told."""
        if self.kept is None:
            return {}
        metrics = dict(map(_metric_digest, blocks[0].metrics)) if blocks else {}
        made = {name: _digest(arm) for name, arm in arms.items()}
        files = {}
        for block in blocks:
            digest = made[block.arm.arm.name]
            if digest is not None:
                # How many samples run at once is for the base package to say: it may be another.
                runs = [len(run.batch.labels) for run in block.runs]
                place = {"arm": digest, "at": block.start, "runs": runs}
                told = {**self.subject, **metrics, **place}
                files[block.key] = self.kept / f"{sha256_of_json(told)}.npz"
        return files


def ran_by(arm: OpenedArm) -> str:
    """Return what runs an arm: where that is another one, scores need not be the same."""
    described = arm.runner.describe()
    return (
        f"moh-deploy {__version__}, {described.runtime}, {described.device or 'CPU'},"
        f" {described.kernels.describe()}"
    )


def _metric_digest(metric: Metric) -> tuple[str, str]:
    """Return the file of a user's function by its digest: it may be changed between two calls."""
    name, file = f"metric {metric.name}", None
    if isinstance(metric, UserMetric):
        file = getattr(inspect.getmodule(metric.function), "__file__", None)
    return name, "ours" if file is None else sha256_of(Path(file))


def _digest(arm: OpenedArm) -> str | None:
    """Return a digest of an arm and what runs it; None if its content cannot be told from files."""
    content = _content(arm.arm)
    if content is None:
        return None
    variant = arm.arm.variant
    way = {"runtime": variant.runtime, "kernels": variant.kernels, "threads": variant.threads}
    name = arm.arm.name
    return sha256_of_json({"name": name, "files": content, "way": way, "ran by": ran_by(arm)})


def _content(arm: Arm) -> dict[str, str] | None:
    # Code of an original, or a server, may be another one by the next time.
    if isinstance(arm.model, PackageDir):
        return dict(arm.model.manifest.files)
    if isinstance(arm.model, OnnxFile):
        path = arm.model.path
        names = [path.name, *sorted(_external_files(path))]
        return {name: sha256_of(path.parent / name) for name in names}
    return None


def _external_files(path: Path) -> set[str]:
    model = onnx.load(path, load_external_data=False)
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _of_arm(
    found: Mapping[tuple[str, int], BlockScores], name: str, place: int
) -> list[MetricScores]:
    """Return the scores of one arm and metric, in the order of the samples."""
    keys = sorted(key for key in found if key[0] == name)
    return [of_run[place] for key in keys for of_run in found[key]]


def _write(file: Path, scores: BlockScores) -> None:
    arrays = {
        f"{run}.{place}.{name}": getattr(score, name)
        for run, of_run in enumerate(scores)
        for place, score in enumerate(of_run)
        for name in ("totals", "weights")
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(file) as partial:
        write_npz(partial, arrays)


def _read(file: Path, block: ArmBlock) -> BlockScores:
    arrays = read_npz(file, error=ConfigError)
    try:
        return [
            [
                MetricScores(_of(arrays, run, place, "totals"), _of(arrays, run, place, "weights"))
                for place in range(len(block.metrics))
            ]
            for run in range(len(block.runs))
        ]
    except KeyError as missing:
        raise ConfigError(
            f"{file} holds no {missing}, expected scores of {len(block.runs)} runs.",
            hint="Delete it: these samples are scored again then.",
        ) from missing


def _of(arrays: Mapping[str, Array], run: int, place: int, name: str) -> Float64Array:
    return arrays[f"{run}.{place}.{name}"].astype(np.float64)
