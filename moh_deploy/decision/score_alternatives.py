"""Score labelled samples with every alternative, in blocks.

Blocks are kept on disk, and may be run by other machines. A block is a few runs of one
alternative. Runs are the same wherever, and in whatever order, blocks are run, each with the same
samples in it, so scores are the same bit for bit.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from moh_deploy import __version__
from moh_deploy.decision.alternative import OpenedAlternative, named_errors
from moh_deploy.decision.promise import SampleScores
from moh_deploy.errors import ConfigError
from moh_deploy.runtime.models import OnnxFile, PackageDir
from moh_deploy.system.bounded_file import sha256_of, sha256_of_json
from moh_deploy.system.npz import read_npz, write_npz
from moh_deploy.system.progress import Progress
from moh_deploy.system.staging import staged_file
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun
from moh_deploy.validate.accuracy.task import Metric, MetricScores, Scored, UserMetric


def run_scores(
    alternative: OpenedAlternative, run: LabelledRun, metrics: Sequence[Metric], ignore: int
) -> list[MetricScores]:
    """Run an alternative on one batch, and return the scores of each metric; see `BlockScorer`."""
    name, batch = alternative.alternative.name, run.batch
    whole = Scored({}, alternative.outputs(batch.inputs), batch.labels).of_valid(
        run.sample.valid, ignore
    )
    # Copies that fill up the last batch would count their sample several times.
    real = batch.real(whole.package)
    scores = []
    for metric in metrics:
        if metric.output is not None and metric.output not in real:
            raise ConfigError(
                f"alternative '{name}' has no output '{metric.output}', which {metric.name} scores."
            )
        with named_errors(name):
            scores.append(metric.score(real, whole.labels))
    return scores


def join_scores(metric: Metric, parts: Mapping[str, Sequence[MetricScores]]) -> SampleScores:
    """Join batches, and leave out samples without a scored label."""
    first = next(iter(parts.values()))
    weights = np.concatenate([scores.weights for scores in first])
    # Weights depend on labels alone, so those of one alternative stand for all.
    kept = weights > 0
    if not kept.any():
        raise ConfigError("every label is one to be ignored: there is nothing to score.")
    totals = {
        name: np.concatenate([score.totals for score in scores])[kept]
        for name, scores in parts.items()
    }
    return SampleScores(metric, weights[kept], totals)


RUNS_OF_A_BLOCK = 8

BlockScores = list[list[MetricScores]]
"""Of each run of a block, of each metric."""


@dataclass(frozen=True)
class AlternativeBlock:
    """A few runs of one alternative that are scored together: what is kept, spread and resumed."""

    alternative: OpenedAlternative  # the alternative, open in this process
    start: int  # the first of its runs
    runs: Sequence[LabelledRun]
    metrics: Sequence[Metric]
    ignore: int  # labels of this number do not count

    @property
    def key(self) -> tuple[str, int]:
        return self.alternative.alternative.name, self.start

    def scored(self) -> BlockScores:
        """Run it in this process. Raises as `BlockScorer` does."""
        return [run_scores(self.alternative, run, self.metrics, self.ignore) for run in self.runs]


ScoreBlocks = Callable[[Sequence[AlternativeBlock]], Iterator[tuple[AlternativeBlock, BlockScores]]]
"""Runs blocks, and yields each with its scores as it is done, in any order."""


def score_here(
    blocks: Sequence[AlternativeBlock],
) -> Iterator[tuple[AlternativeBlock, BlockScores]]:
    """Run blocks in this process, one after the other."""
    for block in blocks:
        yield block, block.scored()


@dataclass(frozen=True)
class BlockScorer:
    """Scores all samples that have a label by all alternatives."""

    # What scores depend on besides an alternative: digests of the plan and of its data.
    subject: Mapping[str, str]
    # A directory where scores of blocks stay until another call wants them; None to keep none.
    kept: Path | None = None
    score: ScoreBlocks = score_here  # what runs blocks

    def __call__(
        self,
        alternatives: Mapping[str, OpenedAlternative],
        runs: Sequence[LabelledRun],
        metrics: Sequence[Metric],
        *,
        ignore: int,
        progress: Progress,
    ) -> list[SampleScores]:
        """Return the scores, one entry for each metric.

        Args:
            alternatives: Open ones, by name.
            runs: The batches, which all alternatives are given in the same order.
            metrics: What scores.
            ignore: Labels of this number do not count.
            progress: What to report steps to.

        Raises:
            ConfigError: Outputs or labels are not what a metric is of, or no label counts.
            BackendError: The runtime of an alternative failed.
        """
        # Alternatives take turns, so that none has the machine at another time than the others.
        blocks = [
            AlternativeBlock(
                alternative, start, runs[start : start + RUNS_OF_A_BLOCK], metrics, ignore
            )
            for start in range(0, len(runs), RUNS_OF_A_BLOCK)
            for alternative in alternatives.values()
        ]
        files = {} if self.kept is None else self._files(self.kept, alternatives, blocks)
        found = {
            block.key: _read_scores(files[block.key], block)
            for block in blocks
            if block.key in files and files[block.key].exists()
        }
        missing = [block for block in blocks if block.key not in found]
        with progress.step(f"scoring {len(missing)} blocks, {len(found)} are kept of before"):
            for block, scores in self.score(missing):
                found[block.key] = scores
                if block.key in files:
                    _write(files[block.key], scores)
        # By alternative, in the order of the samples: one entry for each run.
        ordered = {
            name: [scores for key in sorted(found) if key[0] == name for scores in found[key]]
            for name in alternatives
        }
        return [
            join_scores(metric, {name: [run[place] for run in of] for name, of in ordered.items()})
            for place, metric in enumerate(metrics)
        ]

    def _files(
        self,
        kept: Path,
        alternatives: Mapping[str, OpenedAlternative],
        blocks: Sequence[AlternativeBlock],
    ) -> dict[tuple[str, int], Path]:
        """Return where the scores of each block are kept, of alternatives with a digest."""
        metrics = {}
        for metric in blocks[0].metrics if blocks else ():
            # A user's function by its file: it may be changed between two calls.
            file = None
            if isinstance(metric, UserMetric):
                file = getattr(inspect.getmodule(metric.function), "__file__", None)
            metrics[f"metric {metric.name}"] = "ours" if file is None else sha256_of(Path(file))
        made = {name: _digest(alternative) for name, alternative in alternatives.items()}
        files = {}
        for block in blocks:
            digest = made[block.alternative.alternative.name]
            if digest is not None:
                # How many samples run at once is for the base package to say: it may be another.
                runs = [len(run.batch.labels) for run in block.runs]
                place = {"arm": digest, "at": block.start, "runs": runs}
                told = {**self.subject, **metrics, **place}
                files[block.key] = kept / f"{sha256_of_json(told)}.npz"
        return files


def ran_by(alternative: OpenedAlternative) -> str:
    """Return what runs an alternative: where that is another one, scores need not be the same."""
    described = alternative.runner.describe()
    return (
        f"moh-deploy {__version__}, {described.runtime}, {described.device or 'CPU'},"
        f" {described.kernels.describe()}"
    )


def _digest(alternative: OpenedAlternative) -> str | None:
    """Return a digest of an alternative and its runtime; None if it does not come from files."""
    variant, model = alternative.alternative.variant, alternative.alternative.model
    if isinstance(model, PackageDir):
        files = dict(model.manifest.files)
    elif isinstance(model, OnnxFile):
        tensors = onnx.load(model.path, load_external_data=False).graph.initializer
        entries = (entry for tensor in tensors for entry in tensor.external_data)
        names = {entry.value for entry in entries if entry.key == "location"}
        files = {
            name: sha256_of(model.path.parent / name) for name in (model.path.name, *sorted(names))
        }
    else:
        # Code of an original, or a server, may be another one by the next time.
        return None
    way = {"runtime": variant.runtime, "kernels": variant.kernels, "threads": variant.threads}
    told = {
        "name": alternative.alternative.name,
        "files": files,
        "way": way,
        "ran by": ran_by(alternative),
    }
    return sha256_of_json(told)


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


def _read_scores(file: Path, block: AlternativeBlock) -> BlockScores:
    arrays = read_npz(file, error=ConfigError)
    try:
        return [
            [
                MetricScores(
                    arrays[f"{run}.{place}.totals"].astype(np.float64),
                    arrays[f"{run}.{place}.weights"].astype(np.float64),
                )
                for place in range(len(block.metrics))
            ]
            for run in range(len(block.runs))
        ]
    except KeyError as missing:
        raise ConfigError(
            f"{file} holds no {missing}, expected scores of {len(block.runs)} runs.",
            hint="Delete it: these samples are scored again then.",
        ) from missing
