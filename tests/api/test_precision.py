from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch.nn.functional as F

import moh_deploy
from moh_deploy.config.options import ExportOptions
from moh_deploy.derive import precision as job
from moh_deploy.errors import BackendError, ConfigError, ValidationError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.package import OnnxPackage, RouterTypes
from moh_deploy.perf.tune.quality import QualityCheck, gates_near_zero, read_runs
from moh_deploy.runtime.base import AS_IT_IS, Runner
from moh_deploy.runtime.open_runner import open_runner
from tests import small_moh, unranked_moh
from tests.nightly import sampled


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    output = tmp_path_factory.mktemp("precision") / "package"
    export_package(ExportOptions(small_moh.build(), output, input_specs=("x:[2,7,8]:float32",)))
    return OnnxPackage.open(output)


def test_half_precision_package_passes_verify(package: OnnxPackage, tmp_path: Path):
    report = moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    assert report.parity.max_abs_error > 1e-5  # or nothing was rounded
    assert moh_deploy.verify(tmp_path / "half").equal
    written = OnnxPackage.open(tmp_path / "half")
    assert (written.manifest.precision, written.manifest.compute_type) == ("float16", "float32")
    assert written.manifest.inputs == package.manifest.inputs
    onnx.checker.check_model(onnx.load(written.model_path), full_check=True)


def test_routers_decide_in_float32_and_the_manifest_says_so(package: OnnxPackage, tmp_path: Path):
    moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    (layer,) = OnnxPackage.open(tmp_path / "half").manifest.layers
    assert layer.router_types == RouterTypes("float16", "float32", "float32")


def test_bfloat16_package_is_compared_by_emulation(package: OnnxPackage, tmp_path: Path):
    report = moh_deploy.precision(package.root, to="bfloat16", output=tmp_path / "low")
    assert report.parity.kernels.emulated_dtype == "bfloat16"
    assert report.parity.max_abs_error > 1e-3  # or nothing was rounded
    written = OnnxPackage.open(tmp_path / "low").manifest
    assert written.proof is not None
    assert written.compute_type == "bfloat16"  # of attention's products: their operands are
    assert moh_deploy.verify(tmp_path / "low").equal
    with pytest.raises(BackendError, match="not timed"):
        moh_deploy.bench(tmp_path / "low", min_time=0.0, warmup=0.0)


@pytest.fixture(scope="module", params=[F.relu, unranked_moh.sparsemax], ids=["relu", "sparsemax"])
def unranked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> OnnxPackage:
    output = tmp_path_factory.mktemp("unranked") / "package"
    model = unranked_moh.build(request.param)
    export_package(ExportOptions(model, output, input_specs=("x:[4,64,96]:float32",)))
    return OnnxPackage.open(output)


def opened(package: OnnxPackage) -> Runner:
    return open_runner(package, AS_IT_IS.returning(package.gate_names))


@sampled(3)
@pytest.mark.parametrize("to", ["float16", "bfloat16", "int8", "int4"])
def test_gate_near_zero_of_a_router_without_a_ranking_may_open_or_close(
    unranked: OnnxPackage, to: str, tmp_path: Path
):
    report = moh_deploy.precision(unranked.root, to=to, output=tmp_path / "low")
    assert all(layer.other_heads == 0 for layer in report.parity.layers)
    loads = report.parity.statistics.head_loads
    # In float16 steps are too small for it in one of the two models.
    has_moved = any(load.got != load.reference for load in loads)
    assert to == "float16" or has_moved
    # The condition on flips counts by the same rule.
    known = read_runs(unranked, [], [])
    package = OnnxPackage.open(report.package)
    with opened(unranked) as runner, opened(package) as low:
        check = QualityCheck(unranked, runner, [], (), known.runs, known.files, 0)
        near_zero = gates_near_zero(package, AS_IT_IS)
        assert check.judge(low, near_zero).flips.tokens == 0
        assert (check.judge(low, {}).flips.tokens > 0) == has_moved


def test_crash_of_a_plain_session_stands_beside_the_result_in_float16(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job, "crash_of_plain_session", lambda path: f"It ends on {path.name}.")
    report = moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    assert report.plain_session == "It ends on model.onnx."
    assert report.plain_session in report.to_markdown()
    low = moh_deploy.precision(package.root, to="bfloat16", output=tmp_path / "low")
    assert low.plain_session is None


def test_proof_is_of_every_recorded_run(package: OnnxPackage):
    (one,) = package.vectors
    twice = replace(package, vectors=(one, replace(one, sizes={"batch": 7})))
    proof = job.proof_of(moh_deploy.verify(package.root, kernels="off"), twice)
    assert proof.sizes == (one.sizes, {"batch": 7})
    assert proof.routing_agreement == 1.0


def test_values_that_are_too_large_are_so_for_the_dtype_that_was_asked_for(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    largest = job.lowered_package.largest_values(package)
    first = dict.fromkeys([*largest][: len(largest) // 2], 2e38)
    monkeypatch.setattr(job.lowered_package, "largest_values", lambda _: {**largest, **first})
    report = moh_deploy.precision(package.root, to="bfloat16", output=tmp_path / "low")
    assert report.float32_reasons["values too large for bfloat16"] > 0


def test_package_that_differs_too_much_is_not_written(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = replace(
        package.vectors[0], outputs={k: v + 1 for k, v in package.vectors[0].outputs.items()}
    )
    monkeypatch.setattr(
        job.OnnxPackage,
        "open",
        lambda root, **_: replace(package, root=Path(root), vectors=(broken,)),
    )
    with pytest.raises(ValidationError, match="output 'output' of vectors 0"):
        moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    assert not (tmp_path / "half").exists()


def test_package_in_half_precision_is_refused(package: OnnxPackage, tmp_path: Path):
    moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    with pytest.raises(ConfigError, match=r"half is in float16, expected a package in float32\."):
        moh_deploy.precision(tmp_path / "half", to="bfloat16", output=tmp_path / "low")


def test_unknown_precision_is_refused(package: OnnxPackage, tmp_path: Path):
    with pytest.raises(ConfigError, match="to is 'int3', expected int4, int8, bfloat16 or"):
        moh_deploy.precision(package.root, to="int3", output=tmp_path / "low")
