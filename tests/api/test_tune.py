"""Choices by measuring, with a measuring function in place of a clock."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError, PackageError, ValidationError
from moh_deploy.graph import choose_layers as writing
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune import job
from moh_deploy.perf.tune.report import TuneReport
from moh_deploy.runtime.base import Variant
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.reference.input_sets import InputSet
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library, without_library
from tests.nightly import nightly, sampled
from tests.report.shown import text_of, verbose_text_of
from tests.two_layers import write_two_layers

FIRST, SECOND, WHOLE = "blocks.0.attn", "blocks.1.attn", "whole model"


@dataclass
class Meter:
    """Says what it was told about each contestant; and runs each once, as a clock would.

    Attributes:
        ms: What is measured to contestant to milliseconds; a list has one entry for each call.
        seen: What was measured, in order.
    """

    ms: Mapping[str, Mapping[str, float] | list[Mapping[str, float]]]
    seen: list[str] = field(default_factory=list)

    def __call__(
        self, what: str, contestants: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, ...]]:
        told = self.ms[what]
        ms = told[self.seen.count(what)] if isinstance(told, list) else told
        self.seen.append(what)
        for call in contestants.values():
            call()
        return {name: (ms.get(name, 0.0),) * 7 for name in contestants}


FIRST_IS_DENSE = {
    FIRST: {"dense": 1.0, "sparse": 2.0},
    SECOND: {"dense": 3.0, "sparse": 1.0},
    WHOLE: {"dense": 10.0, "chosen": 8.0},
}


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tuned(
    package: OnnxPackage, ms: Mapping[str, object] | None = None, **options: object
) -> TuneReport:
    required_library()
    return moh_deploy.tune(package.root, measure=Meter(ms or FIRST_IS_DENSE), **options)


def written_choices(package: OnnxPackage) -> list[str | None]:
    return [layer.choice for layer in OnnxPackage.open(package.root).manifest.layers]


def test_each_layer_gets_what_is_fastest_for_it(package: OnnxPackage):
    report = tuned(package, threads=1)
    assert [layer.choice for layer in report.layers] == ["dense", "sparse"]
    assert written_choices(package) == ["dense", "sparse"]
    runs = moh_deploy.inspect(package.root, kernels="require").layer_runs
    assert [run.runs_as for run in runs] == ["dense", "kernel"]
    assert moh_deploy.verify(package.root).equal
    assert moh_deploy.verify(package.root, kernels="off").equal


def test_what_was_measured_is_written_down(package: OnnxPackage):
    tuned(package, threads=1)
    tuning = OnnxPackage.open(package.root).manifest.tuning
    assert (tuning.source, tuning.clock, tuning.threads) == ("measured", "CPU", 1)
    assert tuning.sizes == ({"batch": 2, "seq": 3},)
    assert tuning.layer_ms == (
        ({"dense": 1.0, "sparse": 2.0},),
        ({"dense": 3.0, "sparse": 1.0},),
    )
    assert tuning.model_ms == ({"dense": 10.0, "chosen": 8.0},)
    assert "core" in tuning.machine
    assert (tuning.runtime or "").startswith("ONNX Runtime ")


def test_model_that_is_slower_as_a_whole_stays_dense(package: OnnxPackage):
    report = tuned(package, {**FIRST_IS_DENSE, WHOLE: {"dense": 8.0, "chosen": 8.5}})
    assert report.dense_was_faster
    assert written_choices(package) == ["dense", "dense"]
    assert moh_deploy.verify(package.root).equal
    assert "so every layer stays dense" in text_of(report)


def test_model_that_is_no_faster_as_a_whole_keeps_its_choices(package: OnnxPackage):
    report = tuned(package, {**FIRST_IS_DENSE, WHOLE: {"dense": 8.0, "chosen": 8.0}})
    assert not report.dense_was_faster
    assert written_choices(package) == ["dense", "sparse"]


def test_model_of_dense_layers_is_not_measured_as_a_whole(package: OnnxPackage):
    meter = Meter({path: {"dense": 1.0, "sparse": 2.0} for path in (FIRST, SECOND)})
    required_library()
    report = moh_deploy.tune(package.root, measure=meter)
    assert meter.seen == [FIRST, SECOND]
    assert written_choices(package) == ["dense", "dense"]
    assert report.model_ratio is None


def test_layer_that_measuring_cannot_decide_is_as_predicted(package: OnnxPackage):
    tie = {"dense": 1.0, "sparse": 1.0}
    report = tuned(package, {**FIRST_IS_DENSE, FIRST: tie})
    assert report.undecided == report.tuning.undecided == (FIRST,)
    # No number stands beside the doubt, here or where the package is shown later.
    for text in (text_of(report), text_of(moh_deploy.inspect(package.root))):
        assert "too close or too noisy to tell, so as predicted" in text
        assert "unsure" in text
    assert "; 1 of them unsure" in text_of(report).splitlines()[0]
    assert [layer.choice for layer in report.layers] == ["sparse", "sparse"]
    assert f"too close or too noisy to tell, so as predicted, or else the plainest: {FIRST}" in (
        text_of(report)
    )


@nightly
def test_inputs_count_as_they_weigh(package: OnnxPackage, tmp_path: Path):
    """Sparse wins on long inputs, dense on short ones; the weights decide."""
    for seq in (1, 9):
        write_npz(tmp_path / f"{seq}.npz", vectors(batch=1, seq=seq).inputs)
    long, short = {"dense": 10.0, "sparse": 5.0}, {"dense": 1.0, "sparse": 2.0}
    ms = {FIRST: [long, short], SECOND: [long, short], WHOLE: {"dense": 3.0, "chosen": 2.0}}
    inputs = [tmp_path / "9.npz", tmp_path / "1.npz"]
    report = tuned(package, ms, inputs=inputs, one_choice=True, dry_run=True)
    assert [layer.choice for layer in report.layers] == ["sparse", "sparse"]
    slower = f"{FIRST}, {SECOND}: at batch=1, seq=1 dense was faster, 1 ms against 2 in {FIRST}"
    assert slower in verbose_text_of(report)
    report = tuned(package, ms, inputs=inputs, weights=[1.0, 20.0], one_choice=True)
    assert [layer.choice for layer in report.layers] == ["dense", "dense"]
    tuning = OnnxPackage.open(package.root).manifest.tuning
    assert tuning.weights == (1.0, 20.0)
    assert [sizes["seq"] for sizes in tuning.sizes] == [9, 1]
    measured = report.to_json()["layers"][0]["measured_ms"]
    assert measured == pytest.approx({"dense": 30 / 21, "sparse": 45 / 21})
    assert "time of a run, mean as the inputs weigh" in verbose_text_of(report)


def test_outputs_on_the_users_inputs_are_compared_with_those_before(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_npz(tmp_path / "in.npz", vectors(batch=1, seq=4).inputs)
    seen: list[str] = []
    check = job.check_same_outputs

    def spy(
        before: OnnxPackage, after: OnnxPackage, runner: object, sets: list[InputSet], how: Variant
    ):
        assert before.root == package.root
        assert [layer.choice for layer in after.manifest.layers] == ["dense", "sparse"]
        seen.extend(item.name for item in sets)
        return {**check(before, after, runner, sets, how), "made up": 3}

    monkeypatch.setattr(job, "check_same_outputs", spy)
    report = tuned(package, inputs=[tmp_path / "in.npz"])
    assert seen == [str(tmp_path / "in.npz")]
    assert report.to_json()["flipped_tokens"] == {"made up": 3}
    assert "outputs on made up were not compared with those before: 3 tokens" in text_of(report)


def test_dry_run_writes_nothing(package: OnnxPackage):
    before = files(package.root)
    report = tuned(package, dry_run=True)
    assert [layer.choice for layer in report.layers] == ["dense", "sparse"]
    assert files(package.root) == before
    assert [entry.name for entry in package.root.parent.iterdir()] == ["package"]
    assert "dry run: nothing was written" in text_of(report)


def test_report_is_json_with_gains(package: OnnxPackage):
    content = json.loads(to_json_text(tuned(package, threads=1).to_json()))
    first, second = content["layers"]
    assert (first["before"], first["choice"], first["measured_gain"]) == ("sparse", "dense", 1.0)
    assert (second["choice"], second["measured_gain"]) == ("sparse", 3.0)
    assert second["measured_ms"] == {"dense": 3.0, "sparse": 1.0}
    assert first["predicted_gain"] == 1.0
    assert second["predicted_gain"] > 1.0
    assert content["model_gain"] == 1.25
    assert content["written"] is True


def test_choices_may_be_given(package: OnnxPackage):
    report = moh_deploy.tune(package.root, choose={SECOND: "dense"})
    assert written_choices(package) == [None, "dense"]
    tuning = OnnxPackage.open(package.root).manifest.tuning
    assert (tuning.source, tuning.layer_ms) == ("given", ())
    assert report.written
    assert "│ blocks.1.attn │ sparse │ dense" in text_of(report)


def test_without_kernels_there_is_nothing_to_measure(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    without_library(tmp_path / "none", monkeypatch)
    with pytest.raises(BackendError, match=r"nothing to measure without kernels.* cmake was not"):
        moh_deploy.tune(package.root, measure=Meter(FIRST_IS_DENSE))
    moh_deploy.tune(package.root, choose={"all": "dense"})
    assert written_choices(package) == ["dense", "dense"]


def test_package_without_layers_has_nothing_to_choose(tmp_path: Path):
    package = write_package(tmp_path / "package", with_layer=False)
    with pytest.raises(ConfigError, match="has no layer with anything to choose"):
        moh_deploy.tune(package.root)

    with pytest.raises(ConfigError, match="has no layer with anything to choose"):
        moh_deploy.tune(package.root, choose={"all": "dense"})


def test_report_names_layers_that_are_not_as_asked(package: OnnxPackage):
    report = moh_deploy.tune(package.root, choose={"all": "sparse"}, dry_run=True)
    first, second = report.layers
    kept = replace(second, node=None, choice=None, reason="no known form")
    report = replace(report, layers=(first, kept), asked={"all": "projected"})
    text = text_of(report)
    assert f"sparse, as these layers cannot be projected: {FIRST}\n" in text
    assert f"nothing to choose: {SECOND}: no known form" in text
    assert report.to_json()["layers"][0]["asked"] == "projected"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0, expected 1 to 32768"),
        ({"min_time": -1.0}, "min_time is -1 s"),
        ({"min_time": float("nan")}, "min_time is nan s"),
        ({"weights": [1.0]}, "weights given: 1, files of inputs: 0; expected one"),
        ({"choose": {"blocks.7.attn": "dense"}}, r"no layer 'blocks\.7\.attn'"),
    ],
)
def test_wrong_options_are_refused_and_the_package_stays(
    package: OnnxPackage, options: dict[str, object], message: str
):
    before = files(package.root)
    with pytest.raises(ConfigError, match=message):
        moh_deploy.tune(package.root, **options)
    assert files(package.root) == before


def test_package_that_cannot_be_replaced_is_refused_before_anything_is_measured(
    package: OnnxPackage,
):
    (package.root / "notes.txt").write_text("mine")
    meter = Meter(FIRST_IS_DENSE)
    with pytest.raises(PackageError, match=r"cannot be written: .* holds 'notes\.txt'") as refused:
        moh_deploy.tune(package.root, measure=meter)
    assert "--dry-run" in (refused.value.hint or "")
    assert meter.seen == []


def test_read_only_package_is_refused_before_anything_is_measured(
    package: OnnxPackage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "access", lambda path, _: path != package.root)
    meter = Meter(FIRST_IS_DENSE)
    with pytest.raises(PackageError, match=r"choices cannot be written: .* is read-only"):
        moh_deploy.tune(package.root, measure=meter)
    assert meter.seen == []


@pytest.mark.parametrize("stopped", [FIRST, WHOLE])
def test_interrupt_while_measuring_leaves_the_package(package: OnnxPackage, stopped: str):
    required_library()
    before = files(package.root)

    class Interrupted(Meter):
        def __call__(self, what: str, contestants: Mapping[str, Callable[[], object]]):
            if what == stopped:
                raise KeyboardInterrupt
            return super().__call__(what, contestants)

    with pytest.raises(KeyboardInterrupt):
        moh_deploy.tune(package.root, measure=Interrupted(FIRST_IS_DENSE))
    assert files(package.root) == before
    assert [entry.name for entry in package.root.parent.iterdir()] == ["package"]


@sampled(2)
@pytest.mark.parametrize("writes_before", [0, 1, 2, 3])
def test_full_disk_leaves_the_package(package: OnnxPackage, monkeypatch, writes_before: int):
    """Whichever of the models does not fit: the two that are measured, the proof, the result."""
    save, done = writing.save_with_weights, []

    def fill(model: object, path: Path) -> None:
        if len(done) == writes_before:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(path)
        save(model, path)

    monkeypatch.setattr(writing, "save_with_weights", fill)
    before = files(package.root)
    with pytest.raises(PackageError, match="disk full"):
        tuned(package)
    assert files(package.root) == before
    assert [entry.name for entry in package.root.parent.iterdir()] == ["package"]


def test_package_that_would_compute_something_else_is_not_written(tmp_path: Path):
    package = write_package(tmp_path / "package", scale=2.0)  # a wrong export
    before = files(package.root)
    with pytest.raises(ValidationError, match="not equal to the reference"):
        moh_deploy.tune(package.root, choose={"all": "dense"})
    assert files(package.root) == before
