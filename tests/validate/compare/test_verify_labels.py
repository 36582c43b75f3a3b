from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.package import VectorSet
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array, write_npz
from moh_deploy.system.progress import SilentProgress
from moh_deploy.validate.accuracy import labelled_runs
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.tolerances import tolerance_for
from moh_deploy.validate.compare.verify_labels import folded
from tests.handmade_package import vectors, write_package
from tests.labelled_package import right_labels, samples, write_classifier, write_language_model
from tests.nightly import nightly, sampled
from tests.validate.compare.test_parity_report import LAYER, OUTPUT, REPORT

COUNT = 400
DATA = samples(COUNT, seed=5)
LABELS = right_labels(DATA)


def verify(
    package: Path, *inputs: Path, labels: object = LABELS, **options: object
) -> ParityReport:
    return moh_deploy.verify(package, inputs=inputs, labels=labels, **options)


def written(path: Path, *, of: VectorSet = DATA, **more: Array) -> Path:
    """Write inputs and expected outputs."""
    write_npz(path, {**of.inputs, **of.outputs, **more})
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Inputs and the outputs of the right model."""
    return written(tmp_path / "val.npz")


@pytest.fixture
def biased(tmp_path: Path) -> Path:
    write_classifier(tmp_path / "biased", bias=2e-5)
    return tmp_path / "biased"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write_classifier(tmp_path / "package")
    return tmp_path / "package"


def test_right_package_passes_with_both_sides_and_an_interval(package: Path, inputs: Path):
    report = verify(package, inputs, labels=LABELS.tolist())
    (found,) = report.accuracy
    assert report.equal
    assert (found.metric, found.output, found.samples) == ("top-1", "logits", COUNT)
    assert found.reference == found.package == 1.0
    assert found.interval is not None
    assert found.against == f"expected outputs in {inputs}"
    assert (found.resamples, found.seed, found.smoothed) == (10_000, 0, True)
    (load,) = report.statistics.class_loads
    assert (load.path, sum(load.samples)) == ("blocks.0.attn", COUNT)


def test_loss_that_no_tolerance_sees_is_refused_with_a_sentence(biased: Path, inputs: Path):
    report = verify(biased, inputs)
    assert all(output.reason is None for output in report.outputs)
    (found,) = report.accuracy
    assert found.verdict == "failed"
    assert found.changed[0].package_class == 0
    assert found.changed[0].label == found.changed[0].reference_class != 0
    assert report.reasons == (found.reason,)
    assert "top-1 fell from 100.00 % to " in str(report.failure)


def test_function_bodies_are_the_reference_of_plain_inputs_and_the_report_says_so(
    tmp_path: Path, package: Path
):
    write_npz(tmp_path / "plain.npz", DATA.inputs)
    report = verify(package, tmp_path / "plain.npz")
    assert report.equal
    assert report.routing_agreement == 1.0
    assert "not the original model" in report.accuracy[0].against


def test_other_packages_are_references_too(package: Path, biased: Path, inputs: Path):
    report = verify(package, inputs, against=["recorded", biased])
    assert [metric.verdict for metric in report.accuracy] == ["passed", "passed"]
    assert report.accuracy[1].package > report.accuracy[1].reference + 0.05
    assert str(biased) in report.accuracy[1].against


def test_batches_give_what_one_run_gives(package: Path, inputs: Path):
    reports = [verify(package, inputs, batch_size=size) for size in (COUNT, 37)]
    assert [report.vector_sets for report in reports] == [1, 11]
    assert reports[0].accuracy == reports[1].accuracy
    assert len(reports[1].outputs) == 1
    assert reports[1].outputs[0].elements == COUNT * 8
    assert reports[1].outputs[0].vectors.endswith("worst of 11 batches")


def test_turns_bound_what_is_held(package: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch):
    of_logits, of_gates = 8 * 4, 3 * 4 * 4
    monkeypatch.setattr(labelled_runs, "_TURN_BYTES", 2 * 50 * (of_logits + of_gates))
    progress = SilentProgress()
    assert verify(package, inputs, batch_size=50, progress=progress).equal
    steps = list(progress.seconds)
    assert steps.index("running the reference on batches 3 to 4 of 8") == 6
    assert steps[7:9] == ["comparing batch 3 of 8", "comparing batch 4 of 8"]


@pytest.mark.parametrize("count", [2, 7, 400])
def test_last_batch_of_a_fixed_batch_is_filled_up_and_copies_do_not_count(
    tmp_path: Path, count: int
):
    write_classifier(tmp_path / "fixed", batch=3)
    data = samples(count, seed=4)
    labels = right_labels(data)
    labels[-1] = (labels[-1] + 1) % 8  # would count two or three times
    report = verify(tmp_path / "fixed", written(tmp_path / "val.npz", of=data), labels=labels)
    (found,) = report.accuracy
    assert found.samples == count
    assert found.package == found.reference == pytest.approx(1 - 1 / count)
    assert any("filled up to 3 samples" in note for note in report.notes)
    assert all(output.reason is None for output in report.outputs)


def test_batches_below_what_was_traced_are_filled_up(tmp_path: Path):
    write_classifier(tmp_path / "package", range_from=2)
    data = samples(65, seed=4)
    file = written(tmp_path / "val.npz", of=data)
    report = verify(tmp_path / "package", file, labels=right_labels(data))
    assert report.accuracy[0].samples == 65
    assert "val.npz[64:65] (batch=64, seq=3) was filled up to 64 samples" in report.notes[-1]


def test_labels_of_several_files_are_in_their_order(tmp_path: Path, package: Path):
    for name, part in (("a", slice(0, 150)), ("b", slice(150, COUNT))):
        members = {"x": DATA.inputs["x"][part], "logits": DATA.outputs["logits"][part]}
        write_npz(tmp_path / f"{name}.npz", {**members, "target": LABELS[part]})
        write_npz(tmp_path / f"plain_{name}.npz", members)
    np.save(tmp_path / "labels.npy", LABELS)
    wrong = LABELS.copy()
    wrong[200] = (wrong[200] + 1) % 8
    by_member = verify(package, tmp_path / "a.npz", tmp_path / "b.npz", labels="target")
    plain = [tmp_path / "plain_a.npz", tmp_path / "plain_b.npz"]
    by_file = verify(package, *plain, labels=tmp_path / "labels.npy")
    assert by_member.accuracy[0].package == by_file.accuracy[0].package == 1.0
    assert verify(package, *plain, labels=wrong).accuracy[0].package < 1.0
    with pytest.raises(ConfigError, match=r"there are 399 labels, and 400 samples in .*plain_a"):
        verify(package, *plain, labels=LABELS[1:])


def test_files_of_one_name_are_told_apart(tmp_path: Path, biased: Path):
    files = [tmp_path / name / "val.npz" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        written(file)
    (found,) = verify(biased, *files, labels=np.concatenate([LABELS, LABELS])).accuracy
    assert found.changed[0].file.startswith(f"{files[0]}[")


def test_perplexity_of_tokens(tmp_path: Path):
    write_package(tmp_path / "package")
    write_package(tmp_path / "wrong", scale=0.7)
    data = vectors(batch=40, seq=6, seed=3)
    labels = data.outputs["y"].argmax(axis=-1)
    labels[:, 4:] = -1
    write_npz(tmp_path / "val.npz", {**data.inputs, **data.outputs})
    options = {"inputs": [tmp_path / "val.npz"], "labels": labels, "ignore_label": -1}
    (right,) = moh_deploy.verify(tmp_path / "package", **options).accuracy
    assert (right.metric, right.verdict) == ("perplexity", "passed")
    assert (right.samples, right.labels, right.ignored) == (40, 160, 80)
    report = moh_deploy.verify(tmp_path / "wrong", metric=["perplexity", "top-1"], **options)
    assert [metric.verdict for metric in report.accuracy] == ["failed", "passed"]
    assert "perplexity rose from" in report.reasons[0]


def test_tokens_of_a_language_model_are_scored_with_the_next_one(tmp_path: Path):
    package = write_language_model(tmp_path / "package")
    ids = np.random.default_rng(0).integers(8, size=(50, 9))
    labels = np.where(np.arange(9) < 7, ids, -100)
    write_npz(tmp_path / "val.npz", {"ids": ids, "labels": labels})
    options = {"inputs": [tmp_path / "val.npz"], "labels": "labels"}
    with pytest.raises(ConfigError, match="labels are the tokens of input 'ids', so each"):
        moh_deploy.verify(package.root, **options)
    (found,) = moh_deploy.verify(package.root, shift_labels=True, **options).accuracy
    logits = open_runner(package, Variant(kernels="off")).run({"ids": ids})["y"].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)  # [50, 9, 8]
    own = np.take_along_axis(shares[:, :6], ids[:, 1:7, None], axis=-1)
    assert found.reference == pytest.approx(np.exp(-np.log(own).mean()), rel=1e-5)
    assert (found.labels, found.ignored, found.shifted) == (300, 100, True)


def test_an_input_may_be_the_labels(tmp_path: Path):
    package = write_language_model(tmp_path / "package")
    ids = np.random.default_rng(0).integers(8, size=(50, 9))
    write_npz(tmp_path / "val.npz", {"ids": ids})
    options = {"inputs": [tmp_path / "val.npz"], "labels": "ids"}
    (found,) = moh_deploy.verify(package.root, shift_labels=True, **options).accuracy
    assert (found.labels, found.verdict) == (400, "passed")
    with pytest.raises(ConfigError, match="labels are the tokens of input 'ids', so each"):
        moh_deploy.verify(package.root, metric="top-1", **options)


def test_padding_is_not_scored_whatever_is_computed_there(tmp_path: Path):
    write_package(tmp_path / "package")
    data = vectors(batch=40, seq=6, seed=3)
    labels = data.outputs["y"].argmax(axis=-1).astype(np.uint8)
    valid = np.broadcast_to(np.arange(6) < 4, (40, 6))
    outputs = np.where(valid[..., None], data.outputs["y"], np.nan)
    write_npz(tmp_path / "val.npz", {**data.inputs, "y": outputs, "valid": valid})
    options = {"labels": labels, "valid_tokens": "valid", "batch_size": 7}
    (found,) = verify(tmp_path / "package", tmp_path / "val.npz", **options).accuracy
    assert (found.verdict, found.labels, found.ignored) == ("passed", 160, 80)


def test_functions_of_the_user_are_metrics(tmp_path: Path, package: Path, inputs: Path):
    (tmp_path / "mine.py").write_text(
        "def margin(outputs, labels):\n"
        "    return outputs['logits'][range(len(labels)), labels] * 1e4\n"
    )
    options = {"better": "higher", "code_dirs": [tmp_path]}
    (by_name,) = verify(package, inputs, metric="mine:margin", **options).accuracy
    (by_value,) = verify(package, inputs, metric=_margin, **options).accuracy
    assert (by_name.metric, by_name.verdict) == ("mine:margin", "passed")
    assert by_value.metric.endswith(":_margin")
    assert by_name.package == by_value.package


def test_metric_that_gives_nan_is_not_blamed_on_the_output(package: Path, inputs: Path):
    def broken(_: Mapping[str, Array], labels: Array) -> Array:
        return np.full(len(labels), np.nan)

    report = verify(package, inputs, metric=broken, better="higher")
    assert "the first is sample 0 (the metric gave NaN)" in report.reasons[0]


def _margin(outputs: Mapping[str, Array], labels: Array) -> Array:
    return outputs["logits"][range(len(labels)), labels] * 1e4


@nightly
def test_samples_in_their_order_are_said_once(tmp_path: Path, package: Path):
    np.savez(tmp_path / "val.npz", next(iter(DATA.inputs.values())))
    report = verify(package, tmp_path / "val.npz", batch_size=200)
    assert [note for note in report.notes if "order counts" in note] == [report.notes[0]]


def test_policy_decides_what_may_be_lost(tmp_path: Path, package: Path, biased: Path, inputs: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("accuracy: {top-1: {max_drop: 0.9, reason: a demo}}\n")
    report = verify(biased, inputs, policy=policy, metric=["top-5", "top-1"])
    assert report.equal
    assert report.accuracy[0].rule.max_drop is None
    assert report.accuracy[1].rule.reason == "a demo"
    assert report.policy == f"{policy} (top-1) over the built-in table"
    with pytest.raises(ConfigError, match="top-1 judges nothing: metrics that run: top-5"):
        verify(package, inputs, policy=policy, metric="top-5")


def test_condition_decides_what_may_be_lost_and_needs_labels(biased: Path, inputs: Path):
    loose = verify(biased, inputs, within="top-1 >= 0.5 * reference")
    assert [(metric.metric, metric.verdict) for metric in loose.accuracy] == [("top-1", "passed")]
    assert loose.equal
    tight = verify(biased, inputs, within=["top-1 >= 0.999 * reference", "flips <= 0"])
    assert not tight.equal
    assert tight.accuracy[0].rule.reason == "asked for: top-1 >= 0.999 * reference"
    (flips,) = tight.checks
    assert (flips.verdict, flips.measured) == (
        "cannot tell",
        "routing was not compared, so flips are not known.",
    )
    with pytest.raises(ConfigError, match="the condition on top-5 needs labels"):
        verify(biased, inputs, labels=None, within=["top-5 >= 0.9 * reference"])


def test_nan_fails(tmp_path: Path, package: Path):
    data = {**DATA.inputs, "logits": DATA.outputs["logits"].copy()}
    data["logits"][7, 2] = np.nan
    write_npz(tmp_path / "val.npz", data)
    report = verify(package, tmp_path / "val.npz")
    said = "no finite top-1 in the reference for 1 of 400 samples, the first is sample 7 (NaN in"
    assert said in report.reasons[0]


ONE_HOT = np.eye(8, dtype=np.int64)[LABELS]


@sampled(4)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": LABELS[1:]}, "there are 399 labels, and 400 samples in"),
        ({"labels": 3, "metric": _margin, "better": "higher"}, "labels are a number alone"),
        ({"labels": LABELS / 2}, "labels are float64, expected integers"),
        ({"labels": LABELS + 1}, r"label 8 at \[\d+\] is no class of output 'logits', which has 8"),
        ({"labels": np.full(COUNT, -100)}, "every label is one to be ignored"),
        ({"labels": ONE_HOT}, r"outputs are float32\[batch, 8\]; labels \[400, 8\] take one of"),
        ({"labels": LABELS[:, None]}, r"labels \[400, 1\] take one of floats, \[N, S, classes\]"),
        ({"labels": LABELS[:, None, None]}, r"labels are \[400, 1, 1\], which tells no metric"),
        ({"labels": LABELS, "metric": "perplexity"}, r"perplexity is of \[N, S\]"),
        ({"labels": LABELS, "metric": "top-2"}, "metric 'top-2' is not one of top-1, top-5, perpl"),
        ({"labels": LABELS, "metric": ["top-1", "top-1"]}, "a metric is named twice"),
        ({"labels": LABELS, "metric": _margin}, "whether higher or lower scores of metric"),
        ({"labels": LABELS, "better": "higher"}, "are better is known: leave it out"),
        ({"labels": LABELS, "label_output": "logit"}, "there is no output 'logit' to score"),
        ({"labels": LABELS, "shift_labels": True}, r"only those of \[N, S\] tokens can be shifted"),
        ({"labels": LABELS, "batch_size": 0}, "the model does not run 0 samples at once"),
        ({"labels": "target"}, "labels 'target' are neither a file .* nor a member of"),
        ({"labels": "none.npy"}, "none.npy does not exist"),
        ({"metric": "top-1"}, "and no labels: name --labels"),
        ({"ignore_label": 255}, "and no labels: name --labels"),
        ({"labels": LABELS, "inputs": []}, "no inputs that they are of: name --inputs"),
        (
            {"labels": LABELS, "metric": "nowhere:f", "better": "lower"},
            "metric module 'nowhere' cann",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    package: Path, inputs: Path, options: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        moh_deploy.verify(package, **{"inputs": [inputs], **options})  # type: ignore[arg-type]


def test_file_that_is_named_twice_is_refused(package: Path, inputs: Path):
    labels = np.concatenate([LABELS, LABELS])
    folder = inputs.parent
    for again in (inputs, folder, folder / ".." / folder.name / inputs.name):
        for options in ({"labels": labels}, {}):
            with pytest.raises(ConfigError, match=r"inputs name .*val.npz twice"):
                moh_deploy.verify(package, inputs=[inputs, again], **options)


def test_inputs_of_different_counts_are_refused(tmp_path: Path, package: Path):
    file = written(tmp_path / "val.npz", logits=DATA.outputs["logits"][1:])
    with pytest.raises(ConfigError, match="'x' has 400 samples, and 'logits' 399"):
        verify(package, file)


def test_token_outside_of_the_vocabulary_is_named_before_anything_runs(tmp_path: Path):
    write_package(tmp_path / "package")
    write_npz(tmp_path / "val.npz", vectors(batch=5).inputs)
    labels = np.zeros((5, 3), np.int64)
    labels[4, 1] = 81
    progress = SilentProgress()
    with pytest.raises(ConfigError, match=r"label 81 at \[4, 1\] is no class of output 'y'"):
        verify(tmp_path / "package", tmp_path / "val.npz", labels=labels, progress=progress)
    assert "loading the model" not in progress.seconds


def test_worst_batch_stands_for_all_and_counts_add_up():
    wrong = replace(OUTPUT, vectors="b", max_abs_error=1.0, reason="it differs.")
    layer = replace(
        LAYER,
        vectors="b",
        decisions=12,
        equal_decisions=10,
        excused_tokens=1,
        gate_error=5e-5,
        agreement=0.5,
        smallest_margin=1e-6,
        flip_margin=2e-6,
        forced=True,
        free_flips=3,
    )
    free = replace(LAYER, excused_tokens=2, smallest_margin=0.1)
    first = replace(REPORT, layers=(free,))
    rules = {"int64": tolerance_for("int64")}
    second = replace(REPORT, outputs=(wrong,), layers=(layer,), rules=rules)
    found = folded([first, second, first])
    (output,) = found.outputs
    assert output.vectors == "b, worst of 3 batches, 1 of them differ"
    assert (output.elements, output.reason) == (18, "it differs.")
    (both,) = found.layers
    assert both.vectors == "b, worst of 3 batches"
    assert (both.decisions, both.equal_decisions, both.excused_tokens) == (60, 58, 5)
    assert (both.forced, both.free_flips) == (True, 7)
    assert (both.smallest_margin, both.flip_margin) == (1e-6, 2e-6)
    assert both.agreement == pytest.approx((2 * 24 + 12 * 0.5) / 60)
    assert found.vector_sets == 3
    assert found.reasons == ("it differs.",)
    assert found.rules == {**first.rules, **rules}
    assert found.parts == ()


def test_what_is_judged_in_two_ways_stays_apart():
    forced = replace(OUTPUT, forced=True)
    free = replace(OUTPUT, tolerance=None)
    report = replace(REPORT, outputs=(forced, free))
    assert len(folded([report, report]).outputs) == 2


def test_one_batch_is_left_alone():
    assert folded([REPORT]) == REPORT


def test_batch_that_cannot_be_told_hides_no_fault():
    untold = replace(LAYER, undecided_tokens=1, reason="no data.")
    flipped = replace(LAYER, flipped_tokens=1, reason="other heads.", wrong=("choice",))
    found = folded([replace(REPORT, layers=(item,)) for item in (untold, flipped)])
    assert (found.answer, found.reasons) == ("NOT EQUAL", ("other heads.",))
