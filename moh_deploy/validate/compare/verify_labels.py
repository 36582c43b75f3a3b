"""Verify on samples with labels: batch by batch, so that memory does not grow with their number."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from moh_deploy.errors import ValidationError
from moh_deploy.runtime.base import RecordingRunner, Runner
from moh_deploy.system.progress import Progress
from moh_deploy.validate.accuracy.judge import Setting, judge
from moh_deploy.validate.accuracy.labelled_runs import Dataset, LabelledRun, labelled_runs, turns
from moh_deploy.validate.accuracy.reading import read_labelled
from moh_deploy.validate.accuracy.task import SampleFiles, Scored, Tally, Task
from moh_deploy.validate.compare.checks import Top1Agreement
from moh_deploy.validate.compare.parity import compare_answered
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity, added_tokens
from moh_deploy.validate.compare.policy import Policy
from moh_deploy.validate.compare.routing_statistics import ClassLoads, joined, main_classes
from moh_deploy.validate.compare.verify_runs import with_checks
from moh_deploy.validate.reference.reference import Reference, Subject, by_gates
from moh_deploy.validate.reference.references import Against, rounds_of_files
from moh_deploy.validate.reference.samples import npz_files

Entry = TypeVar("Entry", OutputParity, LayerParity)

_JUDGED = ("nothing", "choices", "scores")
"""What a batch is judged by, the strictest last."""


def folded(reports: Sequence[ParityReport]) -> ParityReport:
    """Join comparisons of batches with one reference, at least one.

    The worst batch of each output and layer stands for all; what is counted adds up.
    """
    # The parts are the batches themselves, which the fold replaces: a dataset of a thousand batches
    # is not a thousand test cases.
    whole = replace(combined(reports), parts=())
    outputs: dict[tuple[str, bool, bool], list[OutputParity]] = {}
    layers: dict[str, list[LayerParity]] = {}
    for output in whole.outputs:
        # Runs with forced routing, and outputs behind a flip, which have no tolerance, stay apart:
        # their errors answer other questions.
        key = output.name, output.forced, output.tolerance is None
        outputs.setdefault(key, []).append(output)
    for layer in whole.layers:
        layers.setdefault(layer.path, []).append(layer)
    return replace(
        whole,
        outputs=tuple(_outputs(of) if len(of) > 1 else of[0] for of in outputs.values()),
        layers=tuple(_layers(of) if len(of) > 1 else of[0] for of in layers.values()),
        tokens=added_tokens([report.tokens for report in reports if report.tokens is not None]),
    )


def _outputs(group: list[OutputParity]) -> OutputParity:
    counted = [output.elements for output in group if output.elements is not None]
    agreements = [output.top_1 for output in group if output.top_1 is not None]
    return replace(
        _worst(group, lambda output: _badness(output.max_abs_error, output.tolerance)),
        elements=sum(counted) if counted else None,
        top_1=sum(agreements, Top1Agreement(0, 0)) if agreements else None,
    )


def _layers(group: list[LayerParity]) -> LayerParity:
    worst = _worst(group, lambda layer: _badness(layer.gate_error, layer.gate_tolerance))
    forced = any(layer.forced for layer in group)

    def known(of: Callable[[LayerParity], float | None]) -> list[float]:
        return [value for layer in group if (value := of(layer)) is not None]

    def mean(of: Callable[[LayerParity], float | None]) -> float | None:
        # Batches weigh as many decisions as they hold.
        weighed = [(value, layer.decisions) for layer in group if (value := of(layer)) is not None]
        total = sum(weight for _, weight in weighed)
        return sum(value * weight for value, weight in weighed) / total if total else None

    return replace(
        worst,
        decisions=sum(layer.decisions for layer in group),
        equal_decisions=sum(layer.equal_decisions for layer in group),
        flipped_tokens=sum(layer.flipped_tokens for layer in group),
        excused_tokens=sum(layer.excused_tokens for layer in group),
        forced=forced,
        free_flips=sum(layer.own_flips for layer in group) if forced else None,
        agreement=mean(lambda layer: layer.agreement),
        jaccard=mean(lambda layer: layer.jaccard),
        smallest_margin=min(known(lambda layer: layer.smallest_margin), default=None),
        flip_margin=max(known(lambda layer: layer.flip_margin), default=None),
        margin_bound=max(known(lambda layer: layer.margin_bound), default=None),
        undecided_tokens=sum(layer.undecided_tokens for layer in group),
        judged_by=max((layer.judged_by for layer in group), key=_JUDGED.index),
    )


def _worst(group: list[Entry], badness: Callable[[Entry], float]) -> Entry:
    """Return the worst batch, with a label that says what it stands for."""

    def rank(entry: Entry) -> tuple[float, bool]:
        # What failed is worse than any error that passed. What cannot be told has a reason, too,
        # and hides no fault.
        no_data = isinstance(entry, LayerParity) and entry.no_data
        return (badness(entry) if entry.reason is None else math.inf), not no_data

    worst = max(group, key=rank)
    wrong = sum(entry.reason is not None for entry in group)
    differ = f", {wrong} of them differ" if wrong else ""
    return replace(worst, vectors=f"{worst.vectors}, worst of {len(group)} batches{differ}")


def _badness(error: float, tolerance: float | None) -> float:
    share = error / tolerance if tolerance else error
    return 0.0 if math.isnan(share) else share  # unjudged NaN must not win `max`


def verify_labelled(
    subject: Subject,
    inputs: Sequence[Path],
    task: Task,
    *,
    against: Sequence[Against],
    policy: Policy,
    progress: Progress,
) -> ParityReport:
    """Compare outputs, gates and the metrics of a task with one reference or several.

    Raises:
        ConfigError: Inputs and labels do not fit the model, each other, or the metric.
        ValidationError: The two sides return outputs of different shapes: nothing can be scored.
        BackendError: The runtime failed.
    """
    # All that can be refused is refused before a model is loaded.
    with progress.step("reading samples and labels"):
        data = read_labelled(npz_files(inputs), task, subject.package.manifest)
        policy.check_metrics([metric.name for metric in data.metrics])
        classes = main_classes([dataset.labels for dataset in data.datasets], task.labelling)
        layers = subject.package.manifest.layers
        rounds = [
            _Round(*pair, [*map(Tally, data.metrics)], ClassLoads(layers, classes))
            for pair in rounds_of_files(data.datasets, subject, against)
        ]
        # By file: references with different samples share the runs that are cut from them.
        cut = partial(labelled_runs, subject, axis=data.axis, task=task)
        runs = {dataset.samples.file: cut(dataset) for dataset in data.datasets}
    with progress.step("loading the model"):
        runner = subject.load()
    with runner:
        job = _Job(subject, runner, task, policy, progress)
        return combined([report for round_ in rounds for report in job.reports(round_, runs)])


@dataclass(frozen=True)
class _Round:
    """One comparison: with what, on what, and the scores."""

    reference: Reference
    datasets: Sequence[Dataset]
    tallies: Sequence[Tally]
    loads: ClassLoads


@dataclass(frozen=True)
class _Job:
    """The parts that all comparisons of a verification share."""

    subject: Subject
    runner: Runner
    task: Task
    policy: Policy
    progress: Progress

    def reports(
        self, round_: _Round, runs_of: Mapping[Path, Sequence[LabelledRun]]
    ) -> list[ParityReport]:
        """Return the comparison of gates and outputs, and that of outputs alone, if there are both.

        Accuracy is of all samples; it is in the first.
        """
        runs = [run for data in round_.datasets for run in runs_of[data.samples.file]]
        done, found = 0, list[ParityReport]()
        # Turn by turn: the answers of a reference to one turn are all that is held at once.
        for turn in turns(runs):
            found += self._compare(round_, turn, done, len(runs))
            done += len(turn)
        # The comparison with gates comes first, since it is the one that accuracy is added to.
        found.sort(key=lambda report: not report.has_routing)
        named = dict.fromkeys(report.reference for report in found)
        first, *others = (folded([r for r in found if r.reference == name]) for name in named)
        alone = [part.with_token_notes() for part in others]
        return [self._whole(round_, first.with_token_notes(), runs), *alone]

    def _whole(
        self, round_: _Round, whole: ParityReport, runs: Sequence[LabelledRun]
    ) -> ParityReport:
        notes = list(whole.notes)
        for run in runs:
            size = len(run.batch.labels) + run.batch.added
            if run.batch.added:
                notes.append(
                    f"{run.sample.label} was filled up to {size} samples with copies of its last"
                    " one, because the model does not run fewer; they are not scored."
                )
        sizes = {data.samples.name: len(data.labels) for data in round_.datasets}
        place = SampleFiles(tuple(sizes), tuple(sizes.values())).place
        accuracy = []
        for tally in round_.tallies:
            rule = self.policy.accuracy_rule(tally.metric.name)
            setting = Setting(round_.reference.name, rule, place)
            accuracy.append(judge(tally.metric, tally.paired(), setting))
        statistics = joined([whole.statistics, round_.loads.statistics])
        whole = replace(whole, notes=tuple(notes), accuracy=tuple(accuracy), statistics=statistics)
        return with_checks(whole, self.subject, round_.reference, self.policy)

    def _compare(
        self, round_: _Round, turn: Sequence[LabelledRun], done: int, total: int
    ) -> list[ParityReport]:
        samples = [run.sample for run in turn]
        which = f"{done + 1} to {done + len(turn)} of {total}"
        with self.progress.step(f"running the reference on batches {which}"):
            answers = round_.reference.answers(self.subject.package, samples)
        package = self.subject.package
        outputs = {spec.name for spec in package.manifest.outputs}
        # Metrics score what was compared: the results are kept instead of running each batch twice.
        recording = RecordingRunner(
            self.runner,
            frozenset(outputs.union(package.gate_names)),
            lambda index: self.progress.step(f"comparing batch {done + index + 1} of {total}"),
        )
        parts = by_gates(round_.reference.name, answers)
        reports = [
            compare_answered(self.subject, recording, part, samples, self.policy) for part in parts
        ]
        # The parts run in another order than the samples have.
        ran = [number for part in parts for number in part.numbers]
        results = dict(zip(ran, recording.results, strict=True))
        ignore = self.task.labelling.ignore
        for index, (run, vectors) in enumerate(zip(turn, answers.vectors, strict=True)):
            got, valid = results[index], samples[index].valid
            scored = Scored(vectors.outputs, got, run.batch.labels).of_valid(valid, ignore)
            _add(round_.tallies, run, scored)
            real = None if valid is None else valid.mask[: len(run.batch.labels)]
            round_.loads.add(run.batch.real(got), run.batch.labels, real)
        return reports


def _add(tallies: Sequence[Tally], run: LabelledRun, scored: Scored) -> None:
    for name, reference in scored.reference.items():
        got = scored.package[name]
        # A metric would score each side by itself, and compare what cannot be compared.
        if got.shape != reference.shape:
            raise ValidationError(
                f"output '{name}' is {list(got.shape)} on {run.sample.label}, and"
                f" {list(reference.shape)} in the reference: they cannot be scored alike."
            )
    # Copies that fill up the last batch would count their sample several times.
    real = run.batch.real
    package = {name: scored.package[name] for name in scored.reference}
    for tally in tallies:
        tally.add(real(scored.reference), real(package), scored.labels)
