"""Compare several ways to serve a model by a plan, and decide which are worth it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import moh_deploy
from moh_deploy.config.checked_yaml import require_trust
from moh_deploy.decision.decide import read_earlier
from moh_deploy.decision.made_alternatives import LoadOriginal, find_alternatives
from moh_deploy.decision.measure import PlannedRun, first_inputs, timed_inputs, try_alternatives
from moh_deploy.decision.measured import DataFile
from moh_deploy.decision.plan import NEW_PLAN, PlanFile, plan_of, read_plan
from moh_deploy.decision.report import DecisionReport
from moh_deploy.decision.score_alternatives import BlockScorer
from moh_deploy.decision.spread import RayBlocks, check_ray
from moh_deploy.decision.summarise import report_of
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.candidate import MeasureFresh, MeasureRuns, fresh_run, runs_timer
from moh_deploy.perf.timing import check_timing
from moh_deploy.runtime.base import Deployed
from moh_deploy.runtime.open_runner import opened_package
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.progress import Progress, SilentProgress
from moh_deploy.system.staging import StagedDirectory, scratch_directory, staged_file
from moh_deploy.validate.accuracy.labelled_runs import LabelledRun, labelled_runs
from moh_deploy.validate.accuracy.reading import SUFFIXES, LabelledData, read_labelled
from moh_deploy.validate.accuracy.task import Labelling, Metric, Task
from moh_deploy.validate.reference.reference import Subject
from moh_deploy.validate.reference.samples import named_mask, npz_files

_SCRATCH = "moh-deploy-compare"


def compare(
    paths: Sequence[Path | str] = (),
    *,
    plan: Path | str | None = None,
    inputs: Sequence[Path | str] = (),
    labels: Path | str | None = None,
    metric: str | None = None,
    may_lose: float | None = None,
    at_least: float | None = None,
    seconds: float | None = None,
    threads: int | None = None,
    earlier: Path | str | None = None,
    keep_scores: Path | str | None = None,
    ray: str | None = None,
    load_original: LoadOriginal | None = None,
    trust_code: bool = False,
    trust_pickle: bool = False,
    measure: MeasureRuns | None = None,
    measure_fresh: MeasureFresh | None = None,
    progress: Progress | None = None,
) -> DecisionReport:
    """Measure quality and time of several alternatives in turns, and decide each by its plan.

        report = moh_deploy.compare(plan="plan.yaml", load_original=moh_deploy.load_original)
        report.decision

    Args:
        paths: Packages, engines or ONNX files in place of a plan; the first is the reference.
        plan: YAML file, see `moh_deploy.decision.plan.Plan`.
        inputs: Without a plan: npz files of samples, or directories of them.
        labels: Without a plan: their labels; None to decide by time alone.
        metric: Without a plan: what is scored; `top-1` if nothing is said.
        may_lose: Without a plan: what an alternative may lose of it, in its own units; 0.005 by
            default.
        at_least: Without a plan: the share of the reference's median time that has to be saved;
            0.1 by default.
        seconds: Without a plan: how long all alternatives run in turns; 10 by default.
        threads: Without a plan: threads within an operator.
        earlier: JSON report of the look before, where the plan allows several: what was told
            there stays.
        keep_scores: A directory where scores of samples are kept by blocks: after an interruption
            the same call goes on there. Nothing else is resumed.
        ray: Address of a Ray cluster, or `auto`, that scores samples; times are of this machine.
            Paths are to be the same on its machines; what is made is put into `keep_scores`.
        load_original: What loads checkpoints of the plan: `moh_deploy.load_original`.
        trust_code: Run code that the plan, or a configuration or a checkpoint in it, names.
        trust_pickle: Allow unpickling the plan's checkpoints, which runs code from them.
        measure: What times calls that take turns; clocks of its own without.
        measure_fresh: What runs a model in a process of its own.
        progress: What to report steps to.

    Returns:
        The decision; look at `decision`, and at the `verdict` of each of `arms`.

    Raises:
        ConfigError: The plan is wrong or not trusted, labels do not fit, or an alternative is not
            there.
        PackageError: `keep_scores` cannot be written.
        MoHDeployError: An alternative cannot be made or run; the message names it.
    """
    progress = progress or SilentProgress()
    given = {
        "paths": [str(path) for path in paths],
        "inputs": [str(path) for path in inputs],
        "labels": None if labels is None else str(labels),
        "metric": metric,
        "may_lose": may_lose,
        "at_least": at_least,
        "seconds": seconds,
        "threads": threads,
    }
    options = {name: value for name, value in given.items() if value not in (None, [])}
    if plan is not None and options:
        raise ConfigError(
            f"{', '.join(options)} is given, but what is compared, and how, is in the plan: leave"
            " it out."
        )
    trust = {"trust_code": trust_code, "trust_pickle": trust_pickle}
    file = _plan_of(options) if plan is None else read_plan(Path(plan), **trust)
    # All that can be refused is refused before anything is made or measured, which takes minutes.
    with progress.step("reading the plan"):
        check_timing(file.plan.threads)
        look, told = read_earlier(None if earlier is None else Path(earlier), file)
        found = find_alternatives(file, load_original and partial(load_original, **trust))
        models = found.models.items()
        engines = [name for name, m in models if isinstance(m, Deployed) and m.is_compiled]
        named = {f"arms.{name}.path": str(file.plan.arms[name].path) for name in engines}
        require_trust(file.source, named, "--trust-code", is_given=trust_code or plan is None)
        samples = _samples(file, found.base)
        timed = []
        if file.plan.latency is not None:
            timed = timed_inputs(found.base, samples.data, file.plan.sizes)
        if ray is not None:
            check_ray(file.plan.threads, samples.metrics)
        kept = None if keep_scores is None else _score_directory(Path(keep_scores))
    with ExitStack() as stack:
        # Other machines can read what is made, if they have to.
        if kept is not None and ray is not None:
            shared = StagedDirectory((kept / _SCRATCH).absolute())
            scratch = stack.enter_context(shared).path
        else:
            scratch = stack.enter_context(scratch_directory(_SCRATCH))
        there = found.given(progress)
        if len(there) < len(file.plan.arms):
            # Before others are made: an engine without its GPU is not to be told of after them.
            with progress.step("running each alternative that is there once"):
                try_alternatives(there, found.base.manifest, first_inputs(timed, samples.batches))
        alternatives = found.made(there, scratch, progress)
        job = PlannedRun(
            plan=file.plan,
            alternatives=alternatives,
            base=found.base,
            batches=samples.batches,
            metrics=samples.metrics,
            timed=timed,
            measure=measure
            or runs_timer(file.plan.seconds, file.plan.warmup, threads=file.plan.threads),
            measure_fresh=measure_fresh or fresh_run,
            scratch=scratch,
            progress=progress,
            score=_scoring(file, samples, kept, ray),
        )
        measured = job.measured()
        with progress.step("deciding"):
            return report_of(
                file.plan, alternatives, measured, look=look, earlier=told, data=samples.files
            )


def new_plan(output: Path | str) -> Path:
    """Write a plan to fill in, and return its path.

    Raises:
        ConfigError: There is a file already.
    """
    path = Path(output)
    if os.path.exists(path):
        raise ConfigError(f"{path} exists already, and a plan is not to be lost: name another.")
    with staged_file(path) as partial:
        partial.write_text(NEW_PLAN, encoding="utf-8")
    return path


def _score_directory(directory: Path) -> Path:
    """Make the directory where scores are kept, if it is not there, and write to it once."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise PackageError(
            f"scores cannot be kept in {directory}: {error.strerror}.",
            hint="Give --keep-scores a directory that can be written.",
        ) from error
    return directory


@dataclass(frozen=True)
class _Samples:
    """Labelled samples, and how they are scored; nothing of it where quality is not asked for.

    `mask` is the input that says which tokens are valid; empty: all are.
    """

    data: LabelledData | None = None
    batches: tuple[LabelledRun, ...] = ()
    metrics: tuple[Metric, ...] = ()
    files: tuple[DataFile, ...] = ()
    mask: str = ""


def _scoring(file: PlanFile, samples: _Samples, kept: Path | None, ray: str | None) -> BlockScorer:
    subject = {file.path: file.sha256 for file in samples.files}
    subject |= {"plan": file.plan.digest, "version": moh_deploy.__version__, "mask": samples.mask}
    threads = file.plan.threads
    if ray is None or threads is None:
        return BlockScorer(subject, kept)
    return BlockScorer(subject, kept, RayBlocks(ray, threads))


def _samples(file: PlanFile, base: OnnxPackage) -> _Samples:
    """Read samples and labels, and cut them into runs."""
    plan = file.plan
    if not plan.quality:
        return _Samples()
    paths = npz_files([file.placed(path) for path in plan.inputs])
    assert plan.labels is not None, "the plan was checked"
    is_file = Path(plan.labels).suffix.lower() in SUFFIXES
    labels = file.placed(Path(plan.labels)) if is_file else plan.labels
    mask = named_mask(base.manifest, plan.valid_tokens)
    tasks = [
        Task(
            labels=labels,
            metrics=(goal.metric,),
            better=goal.better,
            output=goal.output,
            labelling=Labelling(plan.ignore_label, plan.shifted),
            batch_size=plan.batch_size,
            code_dirs=tuple(map(file.placed, plan.code_dirs)),
            valid_tokens=mask,
        )
        for goal in plan.quality
    ]
    # Once for each metric: each chooses its own output, and has to fit the labels.
    read = [read_labelled(paths, task, base.manifest) for task in tasks]
    subject = Subject(opened_package(base), base, "auto")
    batches = [
        run
        for dataset in read[0].datasets
        for run in labelled_runs(subject, dataset, read[0].axis, tasks[0])
    ]
    hashed = [*paths, labels] if isinstance(labels, Path) else paths
    files = [DataFile(str(path), sha256_of(path)) for path in hashed]
    metrics = [metric for labelled_data in read for metric in labelled_data.metrics]
    return _Samples(read[0], tuple(batches), tuple(metrics), tuple(files), mask or "")


def _plan_of(options: Mapping[str, object]) -> PlanFile:
    """Return the plan that options say, by the names of the parameters of `compare`."""
    paths = options.get("paths", [])
    assert isinstance(paths, list), "it is made by `compare`"
    if len(paths) < 2:
        raise ConfigError(
            f"{len(paths)} paths are given, expected a plan, or a reference and at least one more.",
            hint="`moh-deploy compare --new-plan FILE` writes a plan to fill in.",
        )
    if len(set(paths)) != len(paths):
        raise ConfigError(f"a path is named twice: {', '.join(paths)}.")
    document: dict[str, object] = {
        "goal": f"Is anything worth it against {paths[0]}?",
        "reference": paths[0],
        "arms": {name: {"path": name} for name in paths},
        "latency": {"at_least": options.get("at_least", 0.1)},
    }
    scored = [name for name in ("inputs", "labels", "metric", "may_lose") if name in options]
    if scored:
        metric, may_lose = options.get("metric", "top-1"), options.get("may_lose", 0.005)
        document["quality"] = {"metric": metric, "may_lose": may_lose}
    taken = ("inputs", "labels", "seconds", "threads")
    document |= {name: options[name] for name in taken if name in options}
    return PlanFile(plan_of(document, "the options"), Path(), "the options")
