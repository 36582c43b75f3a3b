"""Commands with another runtime: nightly, since the extension is built and models are compiled."""

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import yaml

import moh_deploy
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.open_runner import find_deployed, open_runner
from moh_deploy.serving.served_model import open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.system.npz import write_npz
from tests.api.test_compare import fresh
from tests.edge_case_package import write_edge_package
from tests.grouped_package import write_grouped
from tests.openvino_extension import install_extension
from tests.projected_package import write_projected
from tests.routed_package import write_routed

pytestmark = pytest.mark.nightly


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_extension(monkeypatch, tmp_path)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_edge_package(tmp_path / "package")


def test_run_writes_what_the_original_computed(package: OnnxPackage, tmp_path: Path):
    one = package.vectors[0]
    write_npz(tmp_path / "in.npz", one.inputs)
    report = moh_deploy.run(
        package.root,
        inputs=tmp_path / "in.npz",
        outputs=tmp_path / "out.npz",
        runtime="openvino",
        kernels="require",
    )
    assert report.function_nodes == 0
    with np.load(tmp_path / "out.npz") as written:
        assert list(written) == list(one.outputs)
        for name in written:
            np.testing.assert_allclose(written[name], one.outputs[name], rtol=1e-4, atol=1e-5)


def test_bench_times_package_and_bodies_in_the_runtime(package: OnnxPackage):
    report = moh_deploy.bench(
        package.root,
        baselines=["functions"],
        runtime="openvino",
        threads=1,
        min_time=0.05,
        warmup=0.0,
        gates=["p50 <= 1000 * functions"],
    )
    assert report.runtime.startswith("OpenVINO 20")
    assert report.failure is None


def test_probe_passes(package: OnnxPackage):
    report = moh_deploy.probe(package.root, runtime="openvino")
    assert report.passed, report.failure


def test_probe_of_bfloat16_takes_flips_of_unknown_margin_for_what_noise_makes(tmp_path: Path):
    # Its routers show no scores, and OpenVINO rounds otherwise than function bodies do.
    package = write_routed(tmp_path / "package")
    moh_deploy.precision(package.root, to="bfloat16", output=tmp_path / "bfloat16")
    report = moh_deploy.probe(tmp_path / "bfloat16", runtime="openvino", longest={"batch": 300})
    assert report.passed, report.failure
    (longest,) = [result for result in report.results if result.case.startswith("longest")]
    assert (longest.status, longest.detail[:8]) == ("not run", "no data:")


def test_tune_measures_and_proves_in_the_runtime_and_keeps_its_name(tmp_path: Path):
    package = write_projected(tmp_path / "package")
    moh_deploy.tune(package.root, runtime="openvino", threads=1, min_time=0.01)
    tuned = OnnxPackage.open(package.root)
    assert str(tuned.manifest.tuning.runtime).startswith("OpenVINO 20")
    assert moh_deploy.verify(package.root, runtime="openvino").equal


def test_int8_runs_and_is_equal_within_its_rule(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    moh_deploy.precision(package.root, to="int8", output=tmp_path / "int8")
    report = moh_deploy.verify(tmp_path / "int8", runtime="openvino", kernels="require")
    assert report.equal, report.failure
    assert report.max_abs_error > 1e-4  # or nothing was rounded


def test_static_int8_is_within_its_rule_in_openvino_too(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    rng = np.random.default_rng(8)
    recorded = package.vectors[0].inputs
    mine = {k: rng.permuted(np.tile(v, (9, 1, 1)), axis=-1) for k, v in recorded.items()}
    write_npz(tmp_path / "mine.npz", mine)
    given = {"scales": "static", "inputs": [tmp_path / "mine.npz"]}
    moh_deploy.precision(package.root, to="int8", output=tmp_path / "int8", **given)
    report = moh_deploy.verify(tmp_path / "int8", runtime="openvino", kernels="require")
    assert report.equal, report.failure
    assert report.max_abs_error > 1e-3  # or nothing was rounded


def test_search_tries_every_precision_and_the_package_runs_in_what_won(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    bfloat16 = "bfloat16 in OpenVINO"

    def measure(
        what: str, candidates: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, ...]]:
        for call in candidates.values():
            call()
        return {name: (1.0 if name == bfloat16 else 1.2,) * 7 for name in candidates}

    report = moh_deploy.tune_within(
        package.root, within="flips <= 50 %", output=tmp_path / "fast", measure=measure
    )
    on_cpu = [item for item in report.tried if item.way.runtime != "onnxruntime-cuda"]
    assert len(on_cpu) == 10
    assert (report.runtime, report.precision) == ("openvino", "bfloat16")
    assert not [
        item for item in report.tried if item.way.runtime == "openvino" and item.timed is None
    ]
    fast = tmp_path / "fast"
    assert OnnxPackage.open(fast).manifest.runtime == "openvino"
    # Every command follows it, and a word of the user's wins.
    assert moh_deploy.verify(fast).equal
    quick = {"threads": 1, "min_time": 0.01, "warmup": 0.0}
    both = moh_deploy.bench(fast, baselines=[str(package.root)], **quick)  # type: ignore[arg-type]
    assert both.runtime.startswith("OpenVINO 20")
    assert ", ONNX Runtime" in both.runtime
    moh_deploy.tune(fast, choose={"all": "dense"}, runtime="onnxruntime")
    assert OnnxPackage.open(fast).manifest.runtime == "onnxruntime"


def test_server_answers_from_the_runtime_that_the_package_was_tuned_for(tmp_path: Path):
    package = write_edge_package(tmp_path / "package")
    layers = package.manifest.layers
    tuned = write_choices(package, layers, tmp_path / "tuned", runtime="openvino")
    settings = ServingSettings("model", instances=1, threads=1)
    with closing(open_served(find_deployed(tuned.root), settings)) as served:
        assert served.describe().runtime.startswith("OpenVINO 20")


def test_compare_runs_alternatives_in_the_runtime_beside_those_of_another(tmp_path: Path):
    package = write_grouped(tmp_path / "moh")
    one = package.vectors[0]
    rows = np.random.default_rng(0).standard_normal((60, *one.inputs["x"].shape[1:]))
    write_npz(tmp_path / "x.npz", {"x": rows.astype(np.float32)})
    with open_runner(package) as runner:
        given = runner.run({"x": rows.astype(np.float32)})["y"]
    np.save(tmp_path / "labels.npy", given.argmax(-1))
    there = {"of": "moh", "runtime": "openvino"}
    made: dict[str, dict[str, object]] = {
        "open": {"all_heads_open": True},
        "bfloat16": {"precision": "bfloat16"},
        "int8": {"precision": "int8"},
        "fed": {"fixed_routing": True},
    }
    plan = {
        "goal": "Which runtime",
        "reference": "moh",
        "arms": {
            "moh": {"path": "moh"},
            "openvino": {"path": "moh", "runtime": "openvino", "kernels": "require"},
            **{name: {"made": way, **there} for name, way in made.items()},
        },
        "inputs": ["x.npz"],
        "labels": "labels.npy",
        "quality": {"metric": "top-1", "may_lose": 0.05},
        "latency": {"at_least": 0.1},
        "seconds": 0.2,
        "threads": 1,
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    # A process of its own would not find the extension where this one does.
    report = moh_deploy.compare(plan=tmp_path / "plan.yaml", measure_fresh=fresh)
    alternatives = {alternative.name: alternative for alternative in report.arms}
    assert alternatives["moh"].runtime.startswith("ONNX Runtime ")
    assert {
        alternative.runtime[:11] for name, alternative in alternatives.items() if name != "moh"
    } == {"OpenVINO 20"}
    quality = {name: alternative.quality[0].value for name, alternative in alternatives.items()}
    assert quality["openvino"] == quality["moh"] == quality["fed"] == 1
    assert quality["open"] < 1
    assert 0.9 < quality["int8"] <= quality["bfloat16"] <= 1
    assert 0 < alternatives["openvino"].skipped_share == alternatives["moh"].skipped_share
    opened = [
        [item.open_share for item in alternatives[name].routing] for name in ("moh", "openvino")
    ]
    assert opened[0] == opened[1]
    assert alternatives["openvino"].latency[0].router_share is not None
