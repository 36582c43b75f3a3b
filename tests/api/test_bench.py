"""Benchmarks with measuring functions in place of clocks and processes."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, with_choices
from moh_deploy.perf.bench.candidate import FreshRun, FreshTask, Timing
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.report.markdown import markdown_text
from moh_deploy.runtime import models
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import read_npz, write_npz
from tests.handmade_package import MANIFEST, model, vectors, write_package
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.report.shown import text_of
from tests.true_manifest import finish_true
from tests.two_layers import write_two_layers

DOCS = Path(__file__).parents[2] / "docs" / "bench.md"


@dataclass
class Meter:
    """Says that contestants take 2, 4, 6 ... ms in their order, with half of that in CPU time; and
    runs each once, as a clock would."""

    runs: int = 100
    seen: list[list[str]] = field(default_factory=list)

    def __call__(self, contestants: Mapping[str, Callable[[], object]]) -> dict[str, Timing]:
        self.seen.append(list(contestants))
        for call in contestants.values():
            call()
        return {
            name: Timing((2.0 * i,) * self.runs, (1.0 * i,) * self.runs, (2.0 * i,) * self.runs)
            for i, name in enumerate(contestants, 1)
        }


@dataclass
class Fresh:
    """Keeps what it was asked to run, and the sizes of the inputs."""

    tasks: list[FreshTask] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, task: FreshTask) -> FreshRun:
        self.tasks.append(task)
        self.shapes.append(read_npz(task.inputs, error=ConfigError)["x"].shape)
        return FreshRun(load_ms=30.0, first_run_ms=7.0, peak_memory_bytes=2**20)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def measured(package: OnnxPackage, **options: object) -> BenchReport:
    options = {"measure": Meter(), "measure_fresh": Fresh(), **options}
    return moh_deploy.bench(package.root, **options)


def test_package_is_measured_beside_its_baselines(package: OnnxPackage, tmp_path: Path):
    other = write_package(tmp_path / "other")
    meter, fresh = Meter(), Fresh()
    report = measured(
        package,
        baselines=["dense", "functions", other.root],
        threads=1,
        measure=meter,
        measure_fresh=fresh,
    )
    names = [str(package.root), "dense", "functions", str(other.root)]
    assert meter.seen == [names]
    assert [result.contestant for result in report.results] == names
    assert [result.is_baseline for result in report.results] == [False, True, True, True]
    assert [task.variant.kernels for task in fresh.tasks] == ["auto", "auto", "off", "auto"]
    assert {task.variant.threads for task in fresh.tasks} == {1}
    first = report.results[0]
    assert (first.inputs, first.sizes, first.samples) == ("recorded", {"batch": 2, "seq": 3}, 2)
    assert (first.latency.p99_ms, first.latency.cpu_ms, first.throughput) == (2.0, 1.0, 1000.0)
    assert {name: ratio.value for name, ratio in first.ratios.items()} == {
        "dense": 0.5,
        "functions": pytest.approx(1 / 3),
        str(other.root): 0.25,
    }
    assert set(report.results[1].ratios) == {"functions", str(other.root)}


def test_dense_baseline_is_the_package_with_every_layer_dense(package: OnnxPackage):
    seen: list[list[str]] = []

    def fresh(task: FreshTask) -> FreshRun:
        runs = moh_deploy.inspect(task.model.path.parent).layer_runs
        seen.append([str(run.runs_as) for run in runs])
        return FreshRun(1.0, 1.0, None)

    measured(package, baselines=["dense"], measure_fresh=fresh)
    assert seen[1] == ["dense", "dense"]
    assert seen[0] != seen[1]


def test_several_packages_are_all_judged(package: OnnxPackage, tmp_path: Path):
    other = write_package(tmp_path / "other")
    report = moh_deploy.bench(
        [package.root, other.root],
        baselines=["functions"],
        gates=["p50 <= 0.5 * baseline"],
        measure=Meter(),
        measure_fresh=Fresh(),
    )
    assert [(gate.contestant, gate.passed) for gate in report.gates] == [
        (str(package.root), True),  # 2 ms of 6
        (str(other.root), False),  # 4 ms of 6
    ]
    assert [item.contestant for item in report.work] == [str(package.root), str(other.root)]
    assert report.passed is False
    with pytest.raises(
        ValidationError, match=r"failed for .*other .*: p50 is 4 ms, asked for <= 3"
    ):
        report.raise_if_failed()


def test_packages_may_call_their_dimensions_otherwise(package: OnnxPackage, tmp_path: Path):
    content, dims = model(), {"n": 2, "tokens": 3}
    axes = content.graph.input[0].type.tensor_type.shape.dim
    axes[0].dim_param, axes[1].dim_param = dims
    with PackageWriter(tmp_path / "renamed") as writer:
        onnx.save(content, writer.path("model.onnx"))
        inputs = (TensorInfo("x", "float32", (*dims, 8)),)
        outputs = (TensorInfo("y", "float32", (*dims, 8)),)
        manifest = replace(MANIFEST, inputs=inputs, outputs=outputs, dims=dims)
        renamed = finish_true(writer, manifest, [replace(vectors(), sizes=dims)])
    choices = {"all": "sparse", "all[tokens<=3]": "dense"}
    layers = with_choices(renamed.manifest.layers, choices, dims=list(dims))
    other = write_choices(renamed, layers, tmp_path / "other")
    report = moh_deploy.bench([package.root, other.root], measure=Meter(), measure_fresh=Fresh())
    assert [result.samples for result in report.results] == [2, 2]
    assert report.work[1].layers[0].choice == "dense"


def test_packages_may_call_their_inputs_otherwise(package: OnnxPackage, tmp_path: Path):
    content = model()
    for node in content.graph.node:
        node.input[:] = ["image" if name == "x" else name for name in node.input]
    content.graph.input[0].name = "image"
    with PackageWriter(tmp_path / "other") as writer:
        onnx.save(content, writer.path("model.onnx"))
        manifest = replace(MANIFEST, inputs=(replace(MANIFEST.inputs[0], name="image"),))
        recorded = replace(vectors(), inputs={"image": vectors().inputs["x"]})
        other = finish_true(writer, manifest, [recorded])
    report = moh_deploy.bench([package.root, other.root], measure=Meter(), measure_fresh=Fresh())
    assert [item.contestant for item in report.work] == [str(package.root), str(other.root)]
    assert 0 < report.work[1].layers[0].rows_computed <= report.work[1].layers[0].rows_dense


def test_work_is_counted_in_the_runtime_that_is_timed(package: OnnxPackage, monkeypatch):
    required_library()

    def opened(source: OnnxPackage | Path, variant: Variant) -> Runner:
        """Run function bodies, as OpenVINO does without the extension."""
        return open_session(source, replace(variant, runtime="onnxruntime", kernels="off"))

    monkeypatch.setattr(models, "open_compiled", opened)
    report = measured(package, runtime="openvino")
    assert [layer.runs_as for layer in report.work[0].layers] == ["function", "function"]
    assert [layer.runs_as for layer in measured(package).work[0].layers] == ["kernel", "kernel"]


def test_package_that_takes_other_inputs_is_named(package: OnnxPackage, tmp_path: Path):
    with PackageWriter(tmp_path / "other") as writer:
        content = model()
        content.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        content.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["x_32"], to=1))
        for node in content.graph.node[1:]:
            for index, name in enumerate(node.input):
                node.input[index] = "x_32" if name == "x" else name
        onnx.save(content, writer.path("model.onnx"))
        manifest = replace(MANIFEST, inputs=(replace(MANIFEST.inputs[0], dtype="float64"),))
        recorded = replace(vectors(), inputs={"x": vectors().inputs["x"].astype(np.float64)})
        other = finish_true(writer, manifest, [recorded])
    with pytest.raises(
        ConfigError,
        match=r"other does not take the recorded inputs of the first .*expected dtype float64",
    ):
        measured(package, baselines=[other.root])


def test_gates_that_hold_pass_and_no_gates_are_no_verdict(package: OnnxPackage):
    report = measured(package, baselines=["dense"], gates=["p50 <= 0.5 * baseline", "p99 < 3 ms"])
    assert report.passed is True
    report.raise_if_failed()
    assert text_of(report, 400).count("passed for") == 2
    assert measured(package).passed is None


def test_gate_on_what_was_not_measured_does_not_pass(package: OnnxPackage):
    report = measured(package, gates=["p99 < 1 min"], measure=Meter(runs=99))
    assert report.passed is False
    text = text_of(report, 400)
    assert "gate 'p99 < 1 min' not measured for" in text
    assert "percentiles are left out of fewer than 10 (p90) and 100 (p99) runs" in text


def test_gates_are_judged_at_each_size(package: OnnxPackage):
    fresh = Fresh()
    report = measured(
        package, batch=[2, 4], sizes={"seq": [3, 5]}, gates=["p50 < 1 s"], measure_fresh=fresh
    )
    assert fresh.shapes == [(2, 3, 8), (2, 5, 8), (4, 3, 8), (4, 5, 8)]
    assert [gate.sizes["batch"] for gate in report.gates] == [2, 2, 4, 4]
    assert [result.inputs for result in report.results] == ["recorded"] + ["random"] * 3
    assert [result.samples for result in report.results] == [2, 2, 4, 4]
    assert [item.layers[0].rows_dense for item in report.work] == [24, 40, 48, 80]
    text = text_of(report, 400)
    assert "random inputs at batch=4, seq=5" in text
    assert "heads that they open are not those of real inputs" in text


def test_recorded_inputs_are_not_called_random(package: OnnxPackage):
    assert "random" not in text_of(measured(package), 400)
    assert measured(package, batch=[2]).results[0].inputs == "recorded"


def test_files_of_inputs_are_measured_one_after_the_other(package: OnnxPackage, tmp_path: Path):
    for batch in (1, 3):
        write_npz(tmp_path / f"{batch}.npz", vectors(batch=batch).inputs)
    files = [tmp_path / "1.npz", tmp_path / "3.npz"]
    report = measured(package, inputs=files)
    assert [result.inputs for result in report.results] == list(map(str, files))
    assert [result.samples for result in report.results] == [1, 3]
    with pytest.raises(ConfigError, match=r"inputs bring their own sizes, but .* too: batch;"):
        measured(package, inputs=files, batch=[2])


def test_nan_passes_no_gate_and_is_said_without_one(package: OnnxPackage, tmp_path: Path):
    write_npz(tmp_path / "in.npz", {"x": np.full((1, 3, 8), np.nan, np.float32)})
    inputs = [tmp_path / "in.npz"]
    report = measured(package, inputs=inputs, gates=["p50 < 1 s"])
    assert report.passed is False
    assert "asked for < 1000 ms, but its outputs on" in str(report.failure)
    assert report.notes == ()
    alone = measured(package, inputs=inputs)
    assert (alone.passed, alone.failure) == (None, None)
    (note,) = alone.notes
    assert "(batch=1, seq=3) hold NaN: no gate would pass" in note
    assert not measured(package).notes


def test_package_that_is_not_equal_to_its_recorded_runs_passes_no_gate(tmp_path: Path):
    right = write_package(tmp_path / "right")
    wrong = write_package(tmp_path / "wrong", scale=2.0)
    report = moh_deploy.bench(
        [right.root, wrong.root],
        batch=[5],
        gates=["p50 < 1 s"],
        measure=Meter(),
        measure_fresh=Fresh(),
    )
    assert [gate.passed for gate in report.gates] == [True, False]
    assert "wrong on random inputs at batch=5, seq=3: p50 is 4 ms" in str(report.failure)
    assert "vectors recorded from the original model it is not equal" in str(report.failure)
    assert moh_deploy.bench(wrong.root, measure=Meter(), measure_fresh=Fresh()).failure is None


def test_baseline_of_other_weights_is_said_and_no_fault(package: OnnxPackage, tmp_path: Path):
    other = write_package(tmp_path / "other")
    report = measured(package, baselines=[other.root], gates=["p50 <= baseline"])
    assert report.passed is True
    assert any(
        "its speed is that of another computation" in finding for finding in report.findings()
    )


def test_baseline_of_nan_is_no_measure(package: OnnxPackage, tmp_path: Path):
    other = write_package(tmp_path / "other", scale=math.nan)
    gates = ["p50 <= baseline", "p50 < 1 s"]
    report = measured(package, baselines=[other.root], gates=gates)
    assert [gate.passed for gate in report.gates] == [False, True]
    assert f"but {other.root} is no measure: its outputs on recorded" in str(report.failure)


def test_baseline_of_nan_fails_no_gate_that_does_not_name_it(package: OnnxPackage, tmp_path: Path):
    other = write_package(tmp_path / "other", scale=math.nan)
    report = measured(package, baselines=[other.root], gates=["p50 < 1 s"])
    assert (report.passed, report.failure) == (True, None)
    (note,) = report.notes
    assert note.startswith(f"{other.root} is no measure: its outputs on recorded")


@sampled(4)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0, expected 1 to 32768"),
        ({"threads": 3 * 10**9}, "threads is 3000000000, expected 1 to 32768"),
        ({"min_time": -1}, "min_time is -1 s, expected 0 to 3600"),
        ({"warmup": float("nan")}, "warmup is nan s, expected 0 to 3600"),
        ({"sizes": {"sep": [2]}}, "no dynamic dimension 'sep'"),
        ({"batch": [-1]}, "dimension 'batch' is to be -1"),
        ({"batch": [10**15]}, f"input 'x' of the sizes [{10**15}, 3, 8] does not fit into memory"),
        ({"batch": [10**30]}, "does not fit into memory"),
        ({"gates": ["p50 < baseline"]}, "none is given"),
        ({"gates": ["p55 < 1 ms"]}, "there is no metric 'p55'"),
        ({"baselines": ["dense", "dense"]}, "there are 2 candidates 'dense', expected one"),
        # Nothing takes no time, so no gate on it passes.
        ({"sizes": {"batch": [0]}, "gates": ["p50 < 1 s"]}, "every output is empty on random ("),
        ({"sizes": {"seq": [0]}, "gates": ["p50 < 1 s"]}, "every output is empty on random ("),
        ({"markdown": "/nowhere/report.md"}, "report.md cannot be written"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    package: OnnxPackage, options: dict[str, object], message: str
):
    meter = Meter()
    with pytest.raises((ConfigError, PackageError), match=re.escape(message)):
        measured(package, measure=meter, **options)
    assert meter.seen == []


def test_wrong_directories_are_refused(package: OnnxPackage, tmp_path: Path):
    with pytest.raises(PackageError, match="gone does not exist, expected a package directory"):
        measured(package, baselines=[tmp_path / "gone"])
    with pytest.raises(ConfigError, match="expected at least one directory"):
        moh_deploy.bench([])


def test_package_without_layers_has_no_dense_baseline(tmp_path: Path):
    plain = write_package(tmp_path / "plain", with_layer=False)
    assert measured(plain).work[0].layers == ()
    with pytest.raises(ConfigError, match="no layer that could be dense"):
        measured(plain, baselines=["dense"])


def test_markdown_holds_what_the_report_shows(package: OnnxPackage, tmp_path: Path):
    file = tmp_path / "report.md"
    report = measured(package, baselines=["dense"], gates=["p50 > 1 min"], markdown=file)
    text = file.read_text()
    heading, rest = text.split("\n", 1)
    assert heading == f"### {markdown_text(str(package.root))}: GATES FAILED"
    assert rest.strip() == report.to_markdown().strip()
    assert "### recorded inputs at batch=2, seq=3" in text
    name = markdown_text(str(package.root))
    assert f"| {name} | 100 | 2 | 2 | 2 | 2 | 1000 | 1 | 50.0 % | 30 | 7 | 1 |" in text
    answer, _, reason = rest.strip().split("\n")[:3]
    assert answer.endswith(
        "p50 2 ms at batch=2, seq=3, 2.00x as fast as dense (95 %: 2.00 to 2.00)"
    )
    assert reason.startswith("- gate 'p50 > 1 min' failed for")


def test_every_json_key_is_documented(package: OnnxPackage):
    report = measured(package, baselines=["dense"], gates=["p50 < 1 s"])
    assert to_json_text(report.to_json())
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text()))
    assert keys(report.to_json()) - documented == {"dense", "batch", "seq", "sparse"} - documented


def keys(content: object) -> set[str]:
    if isinstance(content, Mapping):
        return set(content).union(*map(keys, content.values()))
    return set().union(*map(keys, content)) if isinstance(content, (list, tuple)) else set()
