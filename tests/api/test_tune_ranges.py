"""Packages whose layers are run in several ways, depending on the sizes of the inputs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import OnnxPackage, SizeRange, choice_text
from moh_deploy.perf.tune import job
from moh_deploy.perf.tune.report import TuneReport
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import write_npz
from tests.api.test_tune import Meter, files, tuned
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library
from tests.nightly import nightly, sampled
from tests.projected_package import ATTENTION, OUTPUT, QUERY, write_projected
from tests.repaired_package import rewrite_manifest
from tests.report.shown import text_of
from tests.two_layers import write_two_layers

FIRST = "blocks.0.attn"


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def with_zero_dense_bodies(package: OnnxPackage) -> OnnxPackage:
    """Let the bodies of moh.dense return 0: what ran shows in the outputs."""
    model = onnx.load(package.model_path)
    for function in model.functions:
        if function.domain == "moh.dense":
            last = next(item for item in function.node if item.output[0] == function.output[0])
            last.output[0] = "not returned"
            zero = onnx.helper.make_node("Sub", ["not returned"] * 2, [function.output[0]])
            function.node.append(zero)
    onnx.save(model, package.model_path)
    return OnnxPackage.open(package.root, check_digests=False)


@sampled(2)
@pytest.mark.parametrize("kernels", ["off", "require"])
@pytest.mark.parametrize(
    ("where", "dense", "sparse"),
    [
        ("seq<=4", [(1, 4), (7, 1)], [(1, 5), (2, 9)]),
        ("batch*seq<=8", [(2, 4), (8, 1)], [(3, 3), (9, 1)]),
    ],
)
def test_each_branch_runs_at_its_sizes(
    package: OnnxPackage,
    kernels: str,
    where: str,
    dense: list[tuple[int, int]],
    sparse: list[tuple[int, int]],
):
    if kernels == "require":
        required_library()
    moh_deploy.tune(package.root, choose={f"{FIRST}[{where}]": "dense"})
    runner = open_runner(
        with_zero_dense_bodies(OnnxPackage.open(package.root)), Variant(kernels=kernels)
    )
    for expected, sizes in ((True, dense), (False, sparse)):
        for batch, seq in sizes:
            outputs = runner.run(vectors(batch=batch, seq=seq).inputs)
            assert (not outputs["y"].any()) == expected, (batch, seq)


@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_package_equals_the_original_at_sizes_on_both_sides(tmp_path: Path, kernels: str):
    sets = (vectors(), vectors(batch=1, seq=9), vectors(batch=5, seq=1))
    package = write_package(tmp_path / "package", sets=sets)
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense", "all": "sparse"})
    report = moh_deploy.verify(package.root, kernels=kernels)
    assert report.equal
    assert report.vector_sets == 3
    assert report.layer_runs[0].by_size == "dense if seq<=3, else sparse"


@pytest.mark.parametrize("kernels", ["off", "require"])
def test_projections_depend_on_sizes_too(tmp_path: Path, kernels: str):
    if kernels == "require":
        required_library()
    package = write_projected(tmp_path / "package")
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense", "all": "projected"})
    assert moh_deploy.verify(package.root, kernels=kernels).equal
    (run,) = moh_deploy.inspect(package.root, kernels=kernels).layer_runs
    expected = "kernel" if kernels == "require" else "function"
    assert (run.runs_as, run.projections_run_as) == (expected, expected)


def test_gates_are_read_as_ever(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense"})
    package = OnnxPackage.open(package.root)
    runner = open_runner(package, Variant(extra_outputs=package.gate_names))
    for seq in (3, 5):
        one = vectors(seq=seq)
        np.testing.assert_allclose(runner.run(one.inputs)["gates_0"], one.gates[0], atol=1e-6)


def test_manifest_holds_ranges_and_taking_them_back_leaves_nothing(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={"all": "sparse"})
    before = files(package.root)
    moh_deploy.tune(package.root, choose={f"{FIRST}[batch*seq<=8]": "dense"})
    manifest = OnnxPackage.open(package.root).manifest
    assert manifest.layers[0].ranges == (SizeRange("batch*seq", 8, "dense"),)
    assert manifest.layers[1].ranges == ()
    assert manifest.ops["moh.dense::MoHAttention"] == 1
    moh_deploy.tune(package.root, choose={"all": "sparse"})
    assert files(package.root) == before


def test_manifest_written_before_there_were_ranges_is_read(package: OnnxPackage):
    path = package.root / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    for layer in content["layers"]:
        del layer["ranges"]
    path.write_text(json.dumps(content))
    assert OnnxPackage.open(package.root).manifest == package.manifest


def test_range_of_no_dimension_of_the_package_is_refused(package: OnnxPackage):
    with pytest.raises(ConfigError, match="no dynamic dimension 'sec', only batch, seq") as refused:
        moh_deploy.tune(package.root, choose={"all[sec<=3]": "dense"})
    assert refused.value.hint == "Did you mean 'seq'?"
    ranges = [{"size": "batch*sec", "at_most": 3, "choice": "dense"}]
    rewrite_manifest(package.root, lambda found: found["layers"][0].update(ranges=ranges))
    with pytest.raises(PackageError, match="is 'batch\\*sec', but 'sec' is no dynamic dimension"):
        OnnxPackage.open(package.root)


def test_model_that_switches_elsewhere_than_the_manifest_says_is_refused(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={f"{FIRST}[seq<=3]": "dense"})
    model = package.model_path.read_bytes()
    moh_deploy.tune(package.root, choose={f"{FIRST}[seq<=4]": "dense"})
    package.model_path.write_bytes(model)
    with pytest.raises(PackageError, match=r"choice' says .* if seq<=4, .* has .* if seq<=3, else"):
        OnnxPackage.open(package.root, check_digests=False)


def test_reports_show_ranges(package: OnnxPackage):
    required_library()
    report = moh_deploy.tune(package.root, choose={f"{FIRST}[seq<=2]": "dense"})
    assert "dense if seq<=2, else sparse" in text_of(report)
    first = json.loads(to_json_text(report.to_json()))["layers"][0]
    assert first["ranges"] == [{"size": "seq", "at_most": 2, "choice": "dense"}]
    inspected = moh_deploy.inspect(package.root)
    assert "kernel; dense if seq<=2, else sparse" in text_of(inspected)
    shown = json.loads(to_json_text(inspected.to_json()))["layers"][0]
    assert shown["ranges"] == first["ranges"]
    assert shown["predicted_gain"] > 1.0, "sparse at the example's sizes"


@nightly
def test_package_with_ranges_is_measured_one_choice_at_a_time(package: OnnxPackage):
    """What was chosen before does not show in what is measured."""
    moh_deploy.tune(package.root, choose={"all[seq<=2]": "dense"})
    report = tuned(package)
    assert [layer.choice for layer in report.layers] == ["dense", "sparse"]
    assert all(not layer.ranges for layer in report.layers)


LONG, SHORT = {"dense": 10.0, "sparse": 5.0}, {"dense": 1.0, "sparse": 2.0}
SECOND = "blocks.1.attn"


def measured(
    package: OnnxPackage,
    tmp_path: Path,
    *whole: dict[str, float],
    first: tuple[dict[str, float], ...] = (LONG, SHORT),
    **options: object,
) -> TuneReport:
    """Tune on 16 tokens and on one; the second layer is faster sparsely on both."""
    required_library()
    for seq in (1, 16):
        write_npz(tmp_path / f"{seq}.npz", vectors(batch=1, seq=seq).inputs)
    ms = {FIRST: list(first), SECOND: [LONG, LONG], "whole model": list(whole)}
    inputs = [tmp_path / "16.npz", tmp_path / "1.npz"]
    return moh_deploy.tune(package.root, inputs=inputs, measure=Meter(ms), **options)


FASTER = {"dense": 10.0, "chosen": 8.0, "one_choice": 9.0}


def choices(package: OnnxPackage) -> list[str | None]:
    return [choice_text(layer) for layer in OnnxPackage.open(package.root).manifest.layers]


@nightly
def test_layer_gets_ranges_where_one_choice_is_not_the_fastest(
    package: OnnxPackage, tmp_path: Path
):
    report = measured(package, tmp_path, FASTER, FASTER)
    assert choices(package) == ["dense if seq<=4, else sparse", "sparse"]
    assert moh_deploy.verify(package.root).equal
    tuning = OnnxPackage.open(package.root).manifest.tuning
    assert tuning.model_ms == (FASTER, FASTER)
    first, second = report.to_json()["layers"]
    assert first["measured_gain"] == pytest.approx(11 / 6)
    assert second["measured_gain"] == 2.0
    text = text_of(report)
    assert "boundary seq<=4 is the geometric mean of 1 and 16" in text
    assert "whole model at batch=1, seq=1: 1.250x as fast as with every layer dense" in text
    assert "1.125x as fast as with one choice a layer" in text
    assert "was faster" not in text
    shown = text_of(moh_deploy.inspect(package.root))
    assert "dense if seq<=4, else sparse" in shown


def test_one_choice_may_be_asked_for(package: OnnxPackage, tmp_path: Path):
    plain = {"dense": 10.0, "chosen": 8.0}
    report = measured(package, tmp_path, plain, plain, one_choice=True)
    assert choices(package) == ["sparse", "sparse"]
    assert f"{FIRST}: at batch=1, seq=1 dense was faster" in text_of(report)


def test_ranges_that_do_not_make_the_model_faster_are_left_out(
    package: OnnxPackage, tmp_path: Path
):
    same = {"dense": 10.0, "chosen": 8.0, "one_choice": 8.0}
    report = measured(package, tmp_path, same, same)
    assert report.ranges_did_not_pay
    assert choices(package) == ["sparse", "sparse"]
    assert "with a choice for each range of sizes it was nowhere faster" in text_of(report)


@nightly
def test_ranges_stay_where_one_choice_is_slower_than_dense(package: OnnxPackage, tmp_path: Path):
    same = {"dense": 10.0, "chosen": 10.0, "one_choice": 10.0}
    slower = {"dense": 1.0, "chosen": 1.0, "one_choice": 1.1}
    report = measured(package, tmp_path, same, slower)
    assert not report.ranges_did_not_pay
    assert choices(package)[0] == "dense if seq<=4, else sparse"


@nightly
def test_model_is_dense_at_the_sizes_at_which_it_is_slower(package: OnnxPackage, tmp_path: Path):
    """Each size is looked at: that all together are faster does not excuse one of them."""
    slower = {"dense": 1.0, "chosen": 1.1}
    faster = {"dense": 10.0, "chosen": 8.0}
    again = {"dense": 1.0, "chosen": 1.0, "one_choice": 1.1}
    report = measured(package, tmp_path, faster, slower, FASTER, again, first=(LONG, LONG))
    assert choices(package) == ["dense if seq<=4, else sparse"] * 2
    assert report.to_json()["dense_was_faster"] == [{"batch": 1, "seq": 1}]
    text = text_of(report)
    assert "at batch=1, seq=1 it was slower with these layers sparse; so they are dense" in text
    assert moh_deploy.verify(package.root).equal


@nightly
def test_model_that_is_slower_once_more_stays_dense(package: OnnxPackage, tmp_path: Path):
    slower = {"dense": 1.0, "chosen": 1.1, "one_choice": 1.1}
    report = measured(package, tmp_path, FASTER, slower, FASTER, slower, first=(LONG, LONG))
    assert choices(package) == ["dense", "dense"]
    assert "so every layer stays dense" in text_of(report)


def test_runs_of_one_size_have_one_choice(package: OnnxPackage, tmp_path: Path):
    required_library()
    for seed in (0, 1):
        write_npz(tmp_path / f"{seed}.npz", vectors(seed=seed).inputs)
    faster = {"dense": 10.0, "chosen": 8.0}
    ms = {FIRST: [LONG, SHORT], SECOND: [LONG, LONG], "whole model": [faster, faster]}
    inputs = [tmp_path / "0.npz", tmp_path / "1.npz"]
    moh_deploy.tune(package.root, inputs=inputs, measure=Meter(ms))
    assert choices(package) == ["sparse", "sparse"]


def test_contestants_are_what_they_are_called(package: OnnxPackage, tmp_path: Path, monkeypatch):
    seen: dict[str, list[str | None]] = {}
    time_model = job.timed.time_model

    def spy(packages: dict[str, OnnxPackage], *given: object, **options: object) -> object:
        seen.update((name, choices(item)) for name, item in packages.items())
        return time_model(packages, *given, **options)

    monkeypatch.setattr(job.timed, "time_model", spy)
    measured(package, tmp_path, FASTER, FASTER)
    assert seen == {
        "dense": ["dense", "dense"],
        "chosen": ["dense if seq<=4, else sparse", "sparse"],
        "one_choice": ["sparse", "sparse"],
    }


# The choice with projections, from measuring to running.


PATH = "blocks.0.attn"
DOMAINS = {
    "dense": ("moh.dense", "moh.dense", "moh.dense"),
    "sparse": ("moh.dense", "moh", "moh.dense"),
    "projected": ("moh", "moh", "moh"),
}
RUNS = {"dense": ("dense", "dense"), "sparse": ("kernel", "dense"), "projected": ("kernel",) * 2}


@pytest.fixture
def projected(tmp_path: Path) -> OnnxPackage:
    return write_projected(tmp_path / "package")


def domains(projected: OnnxPackage) -> tuple[str, ...]:
    nodes = {node.name: node.domain for node in onnx.load(projected.model_path).graph.node}
    return tuple(nodes[name] for name in (QUERY, ATTENTION, OUTPUT))


@sampled(2)
@pytest.mark.parametrize("choice", ["dense", "sparse", "projected"])
def test_every_choice_can_be_measured_and_run(projected: OnnxPackage, choice: str):
    required_library()

    def measure(
        what: str, contestants: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, ...]]:
        for call in contestants.values():
            call()
        if what == PATH:
            assert list(contestants) == ["nothing", "dense", "sparse", "projected"]
        ms = {"nothing": 0.0, choice: 1.0, "chosen": 1.0}
        return {name: (ms.get(name, 2.0),) * 7 for name in contestants}

    report = moh_deploy.tune(projected.root, measure=measure)
    assert [layer.choice for layer in report.layers] == [choice]
    assert domains(projected) == DOMAINS[choice]
    assert moh_deploy.verify(projected.root, kernels="require").equal
    assert moh_deploy.verify(projected.root, kernels="off").equal
    runs = moh_deploy.inspect(projected.root, kernels="require").layer_runs
    assert runs == (LayerRun(PATH, RUNS[choice][0], None, RUNS[choice][1]),)


def test_choices_come_back_to_where_they_began(projected: OnnxPackage):
    moh_deploy.tune(projected.root, choose={"all": "projected"})
    once = projected.model_path.read_bytes()
    for choice in ("sparse", "dense", "projected"):
        moh_deploy.tune(projected.root, choose={"all": choice})
        assert domains(projected) == DOMAINS[choice]
    assert projected.model_path.read_bytes() == once


def test_projections_are_part_of_what_is_predicted(projected: OnnxPackage):
    (prediction,) = moh_deploy.inspect(projected.root).predictions
    assert list(prediction.ms) == ["dense", "sparse", "projected"]
    assert list(prediction.break_even) == ["sparse", "projected"]
