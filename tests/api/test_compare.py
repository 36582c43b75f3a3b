"""Comparisons of packages made by hand, with a measuring function in place of clocks."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

import moh_deploy
from moh_deploy.decision.api.compare import new_plan
from moh_deploy.decision.plan import read_plan
from moh_deploy.decision.report import DecisionReport
from moh_deploy.errors import ConfigError, MoHDeployError, PackageError
from moh_deploy.package import Manifest, OnnxPackage
from moh_deploy.perf.bench.candidate import FreshRun, FreshTask, Timing
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.accuracy.task import Task
from tests.labelled_package import right_labels, samples, write_classifier
from tests.report.json_schema import assert_of_form

SAMPLES = 800


@dataclass
class Meter:
    """Says that alternatives take so many milliseconds, with 1 % of noise; runs each once."""

    ms: tuple[float, ...]
    rounds: int = 200

    def __call__(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        rng = np.random.default_rng(0)
        for call in calls.values():
            call()
        found = {}
        for name, ms in zip(calls, self.ms, strict=True):
            wall = tuple((ms * (1 + 0.01 * rng.standard_normal(self.rounds))).tolist())
            found[name] = Timing(wall, wall, wall)
        return found


def fresh(task: FreshTask) -> FreshRun:
    return FreshRun(30.0, 7.0, 2**27)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages `right` and `wrong`, of which the second loses much, samples and their labels."""
    root = tmp_path_factory.mktemp("compare")
    write_classifier(root / "right")
    write_classifier(root / "wrong", bias=1e-5)
    one = samples(SAMPLES)
    write_npz(root / "x.npz", one.inputs)
    np.save(root / "labels.npy", right_labels(one))
    return root


def write_plan(folder: Path, name: str = "plan.yaml", **changes: object) -> Path:
    plan = {
        "goal": "Serve faster at the same quality",
        "reference": "right",
        "arms": {"right": {"path": "right"}, "same": {"path": "right", "kernels": "off"}},
        "inputs": ["x.npz"],
        "labels": "labels.npy",
        "quality": {"metric": "top-1", "may_lose": 0.01},
        "latency": {"quantile": 0.5, "at_least": 0.1},
        "router_overhead": False,
        **changes,
    }
    path = folder / name
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def compared(plan: Path, *ms: float, **options: object) -> DecisionReport:
    return moh_deploy.compare(plan=plan, measure=Meter(ms), measure_fresh=fresh, **options)


def verdicts(report: DecisionReport) -> dict[str, str]:
    return {alternative.name: alternative.verdict for alternative in report.arms}


def test_alternative_that_is_faster_and_as_good_wins(folder: Path):
    report = compared(write_plan(folder), 10.0, 8.0)
    assert verdicts(report) == {"right": "reference", "same": "win"}
    assert report.decision == "WIN: 'same' is worth it against 'right'."
    reference, same = report.arms
    assert (same.quality[0].metric, same.quality[0].value) == ("top-1", 1.0)
    low = same.quality[0].low
    assert low is not None
    assert 0.98 < low < 1
    assert same.latency[0].p50_ms == pytest.approx(8, rel=0.01)
    assert (same.memory_mib, same.cpu_ms) == (128.0, pytest.approx(8, rel=0.01))
    assert reference.promises == ()
    assert_of_form("compare", report.to_json())


def test_alternative_that_loses_quality_loses_however_fast_it_is(folder: Path):
    alternatives = {"right": {"path": "right"}, "wrong": {"path": "wrong"}}
    report = compared(write_plan(folder, arms=alternatives), 10.0, 1.0)
    assert verdicts(report)["wrong"] == "loss"
    assert report.headline[0] == "KEEP THE REFERENCE"


def test_alternative_whose_data_are_too_few_cannot_be_told_and_says_what_would_tell(folder: Path):
    few = samples(100)
    write_npz(folder / "few.npz", few.inputs)
    np.save(folder / "few.npy", right_labels(few))
    plan = write_plan(folder, inputs=["few.npz"], labels="few.npy")
    report = compared(plan, 10.0, 8.0)
    assert verdicts(report)["same"] == "cannot tell"
    assert report.headline[0] == "INCONCLUSIVE"
    (said,) = report.arms[1].would_tell
    assert said.startswith("loses at most 1.00 points of top-1: some ")
    assert said.endswith("samples would tell, there were 100")


def test_dense_alternative_that_does_as_well_is_said_first(folder: Path):
    alternatives = {"right": {"path": "right"}, "open": {"path": "right", "dense": True}}
    report = compared(write_plan(folder, arms=alternatives), 10.0, 10.2)
    assert report.headline[0] == "DENSE WOULD DO"
    assert "'open'" in report.decision
    # It would not, were the routed one enough faster.
    assert compared(write_plan(folder, arms=alternatives), 8.0, 10.0).would_do == ()
    # Nor if it lost quality.
    alternatives = {"right": {"path": "right"}, "open": {"path": "wrong", "dense": True}}
    assert compared(write_plan(folder, arms=alternatives), 10.0, 10.0).would_do == ()


def test_every_alternative_is_given_the_same_inputs_in_turns(folder: Path):
    seen: list[list[str]] = []

    def measure(calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        seen.append(list(calls))
        return Meter((10.0, 8.0))(calls)

    plan = write_plan(folder, sizes=[{"batch": 1}, {"batch": 8}])
    report = moh_deploy.compare(plan=plan, measure=measure, measure_fresh=fresh)
    assert [len(item) for item in seen] == [2, 2]
    first = report.arms[0].latency
    assert [item.sizes["batch"] for item in first] == [1, 8]
    assert [item.samples for item in first] == [1, 8]
    assert {item.inputs for item in first} == {"x.npz"}
    (even,) = report.break_even
    assert (even.arm, even.rival) == ("same", "right")
    assert even.outcome == "faster throughout: no crossing between batch 1 and 8"
    assert_of_form("compare", report.to_json())


def test_slow_rounds_are_said_and_change_no_samples_a_second(folder: Path):
    def measure(calls: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        quiet = Meter((10.0, 8.0))(calls)
        slow = tuple(
            ms * (20 if index % 20 == 7 else 1) for index, ms in enumerate(quiet["1"].wall_ms)
        )
        return {**quiet, "1": Timing(slow, slow, slow)}

    report = moh_deploy.compare(plan=write_plan(folder), measure=measure, measure_fresh=fresh)
    (right,), (same,) = (alternative.latency for alternative in report.arms)
    assert same.throughput_per_s == pytest.approx(1e3 * same.samples / 8, rel=0.01)
    assert [len(item.block_means_ms) for item in (right, same)] == [40, 40]
    assert np.mean(same.block_means_ms) == pytest.approx(8 * (1 + 19 / 20), rel=0.02)
    (note,) = [item for item in report.notes if "disturbed" in item]
    assert note.startswith("Other work disturbed 'same' at ")
    assert "the mean time is up to 1.95 times the median" in note


def test_sizes_that_samples_do_not_have_are_random_and_said(folder: Path):
    report = compared(write_plan(folder, sizes=[{"seq": 5}]), 10.0, 8.0)
    assert {item.inputs for item in report.arms[0].latency} == {"random"}
    assert any("random inputs" in note for note in report.notes)


def test_digest_is_of_what_the_plan_says_and_not_of_its_layout(folder: Path):
    plan = write_plan(folder)
    digest = read_plan(plan).plan.digest
    text = plan.read_text()
    plan.write_text(f"# a comment\n{text}")
    assert read_plan(plan).plan.digest == digest
    plan.write_text(text.replace("0.01", "0.02"))
    assert read_plan(plan).plan.digest != digest


def test_second_look_needs_the_first_and_keeps_what_it_told(folder: Path, tmp_path: Path):
    plan = write_plan(folder, looks=2)
    first = compared(plan, 10.0, 7.0)
    assert (first.look, verdicts(first)["same"]) == (1, "win")
    file = tmp_path / "first.json"
    file.write_text(to_json_text(first.to_json()))
    second = compared(plan, 10.0, 20.0, earlier=file)
    assert (second.look, verdicts(second)["same"], second.arms[1].look) == (2, "win", 1)
    file.write_text(to_json_text(second.to_json()))
    with pytest.raises(ConfigError, match="look 2 of 2: the plan allows no other"):
        compared(plan, 10.0, 7.0, earlier=file)
    changed = write_plan(folder, "changed.yaml", looks=3)
    with pytest.raises(ConfigError, match="is of another plan"):
        compared(changed, 10.0, 7.0, earlier=file)
    file.write_text(json.dumps({"some": "thing"}))
    with pytest.raises(ConfigError, match="which is no JSON report of `moh-deploy compare`"):
        compared(plan, 10.0, 7.0, earlier=file)


def test_later_look_may_take_more_seconds(folder: Path, tmp_path: Path):
    plan = write_plan(folder, "two-looks.yaml", looks=2)
    first, file = compared(plan, 10.0, 7.0), tmp_path / "first.json"
    file.write_text(to_json_text(first.to_json()))
    longer = write_plan(folder, "longer.yaml", looks=2, seconds=60)
    second = compared(longer, 10.0, 7.0, earlier=file)
    assert (second.look, second.plan_digest) == (2, first.plan_digest)
    assert json.loads(second.plan)["seconds"] == 60
    # Earlier versions had the seconds in the digest.
    whole = sha256_of_json(read_plan(plan).plan.model_dump(mode="json"))
    file.write_text(to_json_text({**first.to_json(), "plan_digest": whole}))
    assert compared(plan, 10.0, 7.0, earlier=file).look == 2


NEVER = "nothing may be measured before this is refused"


def refused(plan: Path, **options: object) -> MoHDeployError:
    def never(calls: object) -> dict[str, Timing]:
        raise AssertionError(NEVER)

    with pytest.raises(MoHDeployError) as error:
        moh_deploy.compare(plan=plan, measure=never, **options)
    return error.value


@pytest.mark.parametrize(
    ("alternative", "message"),
    [
        ({"path": "absent"}, "alternative 'other' cannot run: absent does not exist"),
        ({"path": "x.npz"}, "x.npz is no package, engine or ONNX model."),
        ({"url": "ftp://host", "model": "m"}, "url is 'ftp://host', expected http://HOST:PORT."),
        (
            {"url": "http://127.0.0.1:9", "model": "m"},
            "alternative 'other' cannot run: no answer: ",
        ),
        ({"checkpoint": {"file": "m.pt"}}, "m.pt does not exist."),
        ({"made": {"all_heads_open": True}}, "plain operators make its gates"),
        ({"made": {"top_k": 3}}, "plain operators make its gates"),
        ({"made": {"prune": {"keep": 99}}}, "keep is 99, but layer 'blocks.0.attn' has "),
        ({"made": {"precision": "int8"}}, "alternative 'other' cannot run: "),
    ],
)
def test_alternative_that_cannot_run_is_named_before_anything_is_measured(
    folder: Path, alternative: dict[str, object], message: str
):
    plan = write_plan(folder, "bad.yaml", arms={"right": {"path": "right"}, "other": alternative})
    said = str(refused(plan)).replace(f"{folder}/", "")
    assert said.startswith("alternative 'other' cannot run: ")
    assert message in said


def test_more_threads_than_a_runtime_takes_are_refused(folder: Path):
    with pytest.raises(ConfigError, match="threads is 3000000000, expected 1 to 32768"):
        compared(write_plan(folder, threads=3 * 10**9), 10.0)


def test_labels_that_do_not_fit_are_refused_before_anything_is_made(folder: Path):
    np.save(folder / "short.npy", np.zeros(7, np.int64))
    made = {"right": {"path": "right"}, "other": {"made": {"precision": "int8"}}}
    plan = write_plan(folder, "bad.yaml", labels="short.npy", arms=made)
    assert str(refused(plan)) == f"there are 7 labels, and {SAMPLES} samples in {folder}/x.npz."


@pytest.mark.parametrize("place", ["x.npz", "x.npz/kept"])
def test_scores_that_cannot_be_kept_are_refused_before_anything_is_made(folder: Path, place: str):
    plan = write_plan(folder, "kept.yaml")
    error = refused(plan, keep_scores=folder / place)
    assert error.message.startswith(f"scores cannot be kept in {folder / place}: ")
    assert isinstance(error, PackageError)


def test_server_and_original_need_what_loads_them(folder: Path):
    (folder / "m.pt").write_bytes(b"no checkpoint")
    alternatives = {"right": {"path": "right"}, "other": {"checkpoint": {"file": "m.pt"}}}
    error = refused(write_plan(folder, "bad.yaml", arms=alternatives))
    assert "nothing was given that loads it" in error.message


def test_paths_stand_for_a_plan(folder: Path):
    right, wrong = folder / "right", folder / "wrong"
    # Both once more without their routers.
    options = {"measure": Meter((10.0, 8.0, 9.0, 7.0)), "measure_fresh": fresh}
    report = moh_deploy.compare([right, wrong], **options)
    assert verdicts(report) == {str(right): "reference", str(wrong): "win"}
    assert report.arms[0].latency[0].router_share == pytest.approx(0.1, abs=0.01)
    assert any("verdicts are of time alone" in note for note in report.notes)
    report = moh_deploy.compare(
        [right, wrong], inputs=[folder / "x.npz"], labels=folder / "labels.npy", **options
    )
    assert verdicts(report)[str(wrong)] == "loss"
    with pytest.raises(ConfigError, match="1 paths are given, expected a plan"):
        moh_deploy.compare([right], **options)
    with pytest.raises(ConfigError, match="paths, may_lose is given, but what is compared"):
        moh_deploy.compare([right, wrong], plan=folder / "plan.yaml", may_lose=0.1, **options)
    with pytest.raises(ConfigError, match="the options: quality is given, but no inputs and"):
        moh_deploy.compare([right, wrong], metric="top-5", **options)


def test_new_plan_is_one_and_overwrites_nothing(tmp_path: Path):
    path = new_plan(tmp_path / "plan.yaml")
    assert set(read_plan(path).plan.arms) == {"dense", "moh", "all-open"}
    with pytest.raises(ConfigError, match="exists already"):
        new_plan(path)


def test_last_batch_that_is_filled_up_counts_each_sample_once(folder: Path):
    write_classifier(folder / "fixed", batch=3)
    few = samples(100)
    write_npz(folder / "hundred.npz", few.inputs)
    np.save(folder / "hundred.npy", right_labels(few))
    alternatives = {"right": {"path": "fixed"}, "same": {"path": "fixed", "kernels": "off"}}
    plan = write_plan(
        folder,
        "fixed.yaml",
        arms=alternatives,
        inputs=["hundred.npz"],
        labels="hundred.npy",
        latency=None,
    )
    report = compared(plan)
    assert [
        (alternative.quality[0].samples, alternative.quality[0].value)
        for alternative in report.arms
    ] == [(100, 1.0)] * 2
    assert any("verdicts are of quality alone" in note for note in report.notes)


def test_alternative_of_other_outputs_is_refused_before_anything_is_scored(folder: Path):
    nodes = [
        helper.make_node("ReduceMean", ["x", "axis"], ["mean"], keepdims=0),
        helper.make_node("Slice", ["mean", "zero", "four", "axis"], ["logits"]),
    ]
    numbers = {name: np.array([n], np.int64) for name, n in (("axis", 1), ("zero", 0), ("four", 4))}
    graph = helper.make_graph(
        nodes,
        "narrow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "narrow.onnx")
    alternatives = {"right": {"path": "right"}, "narrow": {"path": "narrow.onnx"}}
    said = refused(write_plan(folder, "bad.yaml", arms=alternatives)).message
    assert "alternative 'narrow' returns output 'logits' of [" in said
    assert said.endswith("8]: they do not do the same.")


def test_padding_is_left_out_as_the_package_says_unless_the_plan_says_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str | None] = []

    def read(paths: object, task: Task, manifest: Manifest) -> None:
        asked.append(task.valid_tokens)
        raise ConfigError("that is all")

    opened = OnnxPackage.open
    monkeypatch.setattr("moh_deploy.decision.api.compare.read_labelled", read)
    monkeypatch.setattr(
        OnnxPackage,
        "open",
        lambda root, **options: replace(
            opened(root, **options),
            manifest=replace(opened(root, **options).manifest, valid_tokens="x"),
        ),
    )
    for changes in ({}, {"valid_tokens": "all"}):
        refused(write_plan(folder, "masked.yaml", **changes))
    assert asked == ["x", None]
