"""Verify on samples with labels: batch by batch, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moh_deploy.errors import ValidationError
from moh_deploy.jobs.heard_runner import HeardRunner
from moh_deploy.jobs.labelled_runs import LabelledRun, labelled_runs, turns
from moh_deploy.jobs.references import Against, function_bodies, references
from moh_deploy.jobs.subject import Loaded, Subject
from moh_deploy.npz import Array
from moh_deploy.progress import Progress
from moh_deploy.report.tables import count
from moh_deploy.validate.accuracy.class_loads import ClassLoads, main_classes
from moh_deploy.validate.accuracy.dataset import Dataset
from moh_deploy.validate.accuracy.judge import Setting, judge
from moh_deploy.validate.accuracy.metric_parity import MetricParity
from moh_deploy.validate.accuracy.reading import read_labelled
from moh_deploy.validate.accuracy.tally import SampleFiles, Tally
from moh_deploy.validate.accuracy.task import Task
from moh_deploy.validate.folded import folded
from moh_deploy.validate.parity import compare
from moh_deploy.validate.parity_report import ParityReport, combined
from moh_deploy.validate.policy import Policy
from moh_deploy.validate.reference import ExpectedOutputs, Reference
from moh_deploy.validate.routing_statistics import joined
from moh_deploy.validate.samples import npz_files, with_valid_tokens


def verify_labelled(
    subject: Subject,
    inputs: Sequence[Path],
    task: Task,
    *,
    against: Sequence[Against],
    valid_tokens: str | None,
    policy: Policy,
    progress: Progress,
) -> ParityReport:
    """Compare outputs, gates and the metrics of a task with one reference or several.

    Raises:
        ConfigError: Inputs and labels do not fit the model, each other, or the metric.
        ValidationError: The two sides return outputs of different shapes: nothing can be scored.
        BackendError: The runtime failed.
    """
    with progress.step("reading samples and labels"):
        data = read_labelled(npz_files(inputs), task, subject.package.manifest)
        classes = main_classes([one.labels for one in data.datasets], task.labelling)
        rounds = [
            _Round(
                reference,
                sets,
                [Tally(metric) for metric in data.metrics],
                ClassLoads(subject.package.manifest.layers, classes),
            )
            for reference, sets in _references(subject, data.datasets, against)
        ]
        runs = {
            one.samples.file: labelled_runs(subject, one, data.axis, task.batch_size)
            for one in data.datasets
        }
    with progress.step("loading the model"):
        loaded = subject.load()
    with loaded.closing:
        job = _Job(subject, loaded, task, valid_tokens, policy, progress)
        return combined([job.report(one, runs) for one in rounds])


@dataclass(frozen=True)
class _Round:
    """One comparison: with what, on what, and the scores."""

    reference: Reference
    datasets: Sequence[Dataset]
    tallies: Sequence[Tally]
    loads: ClassLoads


def _references(
    subject: Subject, datasets: Sequence[Dataset], against: Sequence[Against]
) -> list[tuple[Reference, Sequence[Dataset]]]:
    """Return what to compare with, each with the samples that it has an answer for."""
    known = [one for one in datasets if one.samples.expected]
    others = [one for one in datasets if not one.samples.expected]
    named = known or datasets
    recorded = ExpectedOutputs(
        "; ".join(f"expected outputs in {one.samples.file}" for one in named)
    )
    if against:
        return [(one, datasets) for one in references(against, subject, recorded)]
    found: list[tuple[Reference, Sequence[Dataset]]] = [(recorded, known)] if known else []
    return [*found, *([(function_bodies(subject.package), others)] if others else [])]


@dataclass(frozen=True)
class _Job:
    """What all comparisons have in common."""

    subject: Subject
    loaded: Loaded
    task: Task
    valid_tokens: str | None
    policy: Policy
    progress: Progress

    def report(self, one: _Round, runs_of: Mapping[Path, Sequence[LabelledRun]]) -> ParityReport:
        runs = [run for data in one.datasets for run in runs_of[data.samples.file]]
        done, reports = 0, []
        for turn in turns(runs):
            reports.append(self._compare(one, turn, f"{done + 1} to {done + len(turn)}", len(runs)))
            done += len(turn)
        whole = folded(reports)
        notes = (
            *whole.token_notes,
            *whole.notes,
            *(_filled(run) for run in runs if run.batch.added),
        )
        accuracy = tuple(self._judged(one, tally) for tally in one.tallies)
        return replace(
            whole,
            subject=self.subject.name,
            notes=notes,
            accuracy=accuracy,
            statistics=joined([whole.statistics, one.loads.statistics]),
        )

    def _compare(
        self, one: _Round, turn: Sequence[LabelledRun], which: str, total: int
    ) -> ParityReport:
        manifest = self.subject.package.manifest
        samples = with_valid_tokens([run.sample for run in turn], manifest, self.valid_tokens)
        with self.progress.step(f"running the reference on batches {which} of {total}"):
            answers = one.reference.answers(self.subject.package, samples)
        heard = HeardRunner(self.loaded.runner)
        with self.progress.step(f"comparing batches {which} of {total}"):
            report = compare(
                self.subject.package,
                heard,
                answers.vectors,
                labels=[sample.label for sample in samples],
                valid=[sample.valid for sample in samples if sample.valid is not None],
                reference=one.reference.name,
                outputs_only=not (answers.has_gates and self.subject.has_gates),
                variants=self.loaded.variants,
                policy=self.policy,
            )
            for run, vectors, got in zip(turn, answers.vectors, heard.results, strict=True):
                _add(one.tallies, run, vectors.outputs, got)
                one.loads.add(run.batch.real(got), run.batch.labels)
        return replace(report, notes=(*answers.notes, *report.notes))

    def _judged(self, one: _Round, tally: Tally) -> MetricParity:
        files = SampleFiles(
            tuple(data.samples.file for data in one.datasets),
            tuple(len(data.labels) for data in one.datasets),
        )
        metric = tally.metric
        setting = Setting(one.reference.name, self.policy.accuracy_rule(metric.name), files.place)
        return judge(metric, tally.paired(), setting)


def _add(
    tallies: Sequence[Tally],
    run: LabelledRun,
    expected: Mapping[str, Array],
    got: Mapping[str, Array],
) -> None:
    for name, reference in expected.items():
        if got[name].shape != reference.shape:
            raise ValidationError(
                f"output '{name}' is {list(got[name].shape)} on {run.sample.label}, and"
                f" {list(reference.shape)} in the reference: they cannot be scored alike."
            )
    batch = run.batch
    package = {name: got[name] for name in expected}
    for tally in tallies:
        tally.add(batch.real(expected), batch.real(package), batch.labels)


def _filled(run: LabelledRun) -> str:
    copies = count(run.batch.added, "copy").replace("copys", "copies")
    return (
        f"{run.sample.label} was filled up with {copies} of its last sample, because the model does"
        " not run fewer; the copies are not scored."
    )
