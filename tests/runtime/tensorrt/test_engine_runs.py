"""`run`, `verify` and `bench` of engine directories: refused for real, done on a fake runtime."""

import ctypes
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.bench.candidates import BenchSetting, find_candidates
from moh_deploy.runtime.tensorrt.engine_dir import EngineLayer
from moh_deploy.runtime.tensorrt.models import EngineDir
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import write_npz
from tests.fakes import Fakes, fakes
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import MANIFEST, python, simulate_gpu, write_engine
from tests.runtime.tensorrt.test_engine import needs_polygraphy

__all__ = ["fakes"]


def _command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("from moh_deploy.cli import main; main()", *arguments)


def _package(root: Path) -> OnnxPackage:
    """Write one that computes y = x, with a second recorded run, of sizes that no profile has."""
    sets = (vectors(with_layer=False), vectors(batch=2, seq=50, with_layer=False))
    return write_package(root, with_layer=False, sets=sets)


def _engine_of(package: OnnxPackage, root: Path, *, scale: float = 1.0) -> Path:
    sha256 = sha256_of(package.root / "manifest.json")
    return write_engine(root, replace(MANIFEST, layers=(), package_sha256=sha256), scale=scale)


def _inputs(path: Path, batch: int = 2) -> Path:
    write_npz(path, vectors(batch=batch).inputs)
    return path


@pytest.fixture
def without_driver() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    pytest.skip("there is a driver")


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return _package(tmp_path / "package")


@pytest.fixture
def engine(package: OnnxPackage, tmp_path: Path) -> Path:
    """An engine of the package."""
    return _engine_of(package, tmp_path / "engine")


@nightly
@pytest.mark.usefixtures("without_driver")
def test_run_and_verify_are_refused_where_there_is_no_gpu(
    engine: Path, package: OnnxPackage, tmp_path: Path
):
    inputs, outputs = _inputs(tmp_path / "in.npz"), tmp_path / "out.npz"
    refused = _command("run", engine, "--inputs", inputs, "--outputs", outputs)
    assert refused.returncode == 6
    assert f"error: {engine} cannot run here: no NVIDIA driver" in refused.stderr
    assert "hint: Run it on a machine with an NVIDIA GPU." in refused.stderr
    assert not outputs.exists()
    refused = _command("verify", engine, "--package", package.root, "--json")
    assert refused.returncode == 6
    assert "no NVIDIA driver" in json.loads(refused.stdout)["error"]["message"]


@nightly
def test_options_that_do_not_fit_an_engine_are_refused(
    engine: Path, package: OnnxPackage, tmp_path: Path
):
    other = write_package(tmp_path / "other")
    files = ["--inputs", _inputs(tmp_path / "in.npz"), "--outputs", tmp_path / "out.npz"]
    for words, said in (
        (["verify", engine], "--package DIR"),
        (["verify", engine, "--package", other.root], "was not built from"),
        (["verify", package.root, "--package", package.root], "is no engine: leave it out"),
        (["run", engine, *files, "--kernels", "off"], "was decided when it was built"),
    ):
        refused = _command(*words)
        assert refused.returncode == 2
        assert said in refused.stderr


@nightly
@needs_polygraphy
def test_run_writes_what_the_engine_gives(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    plugin = fakes.library("libmoh_plugin.so", "int moh;")
    root = write_engine(tmp_path / "engine", plugin=plugin)
    inputs, outputs = _inputs(tmp_path / "in.npz", batch=3), tmp_path / "out.npz"
    ran = _command("run", root, "--inputs", inputs, "--outputs", outputs, "--json")
    assert ran.returncode == 0, ran.stderr
    content = json.loads(ran.stdout)
    assert content["outputs"] == [{"name": "y", "dtype": "float32", "shape": [3, 3, 8]}]
    assert content["layer_runs"][0]["runs_as"] == "kernel"
    assert content["kernels"]["library"] == "libmoh_plugin.so"
    with np.load(outputs) as found:
        np.testing.assert_array_equal(found["y"], 2 * vectors(batch=3).inputs["x"])


def test_required_kernels_that_were_not_built_in_end_with_6(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    layers = (
        EngineLayer("blocks.1.attn", "function", "operators", "sparse", "head_dim is 300"),
        EngineLayer("blocks.2.attn", "kernel", "function", "sparse", "its router is refused"),
    )
    root = write_engine(tmp_path / "engine", replace(MANIFEST, layers=(*MANIFEST.layers, *layers)))
    files = ["--inputs", _inputs(tmp_path / "in.npz"), "--outputs", tmp_path / "out.npz"]
    refused = _command("run", root, *files, "--kernels", "require")
    assert refused.returncode == 6
    assert "was built without them for blocks.1.attn, blocks.2.attn." in refused.stderr


@nightly
@needs_polygraphy
def test_verify_compares_the_recorded_runs_that_fit(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    package = _package(tmp_path / "package")
    right = _engine_of(package, tmp_path / "right")
    equal = _command("verify", right, "--package", package.root, "--json")
    assert equal.returncode == 0, equal.stderr
    content = json.loads(equal.stdout)
    assert content["equal"] is True
    assert (content["vector_sets"], content["max_abs_error"]) == (1, 0.0)
    assert content["reference"].endswith("those of sizes that the engine was built for")
    wrong = _engine_of(package, tmp_path / "wrong", scale=1.5)
    unequal = _command("verify", wrong, "--package", package.root)
    assert unequal.returncode == 1
    assert "NOT EQUAL" in unequal.stdout


@nightly
@needs_polygraphy
def test_engines_are_compared_with_packages_and_packages_with_engines(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    sets = (vectors(with_layer=False),)  # of sizes that the engine was built for
    package = write_package(tmp_path / "package", with_layer=False, sets=sets)
    right, wrong = (_engine_of(package, tmp_path / str(s), scale=s) for s in (1.0, 1.5))
    both = ["--against", right, "--against", wrong, "--json"]
    content = json.loads(_command("verify", package.root, *both).stdout)
    assert [comparison["equal"] for comparison in content["comparisons"]] == [True, False]
    assert content["comparisons"][0]["reference"] == f"engine {right}"
    turned = ["--package", package.root, "--against", "functions", "--json"]
    assert _command("verify", right, *turned).returncode == 0
    assert _command("verify", wrong, *turned).returncode == 1


@nightly
@needs_polygraphy
def test_verify_takes_other_inputs(
    fakes: Fakes, package: OnnxPackage, engine: Path, tmp_path: Path
):
    simulate_gpu(fakes)
    inputs = _inputs(tmp_path / "in.npz", batch=4)
    compared = _command("verify", engine, "--package", package.root, "--inputs", inputs, "--json")
    assert compared.returncode == 0, compared.stderr
    assert "function bodies with optimisations off" in json.loads(compared.stdout)["reference"]
    tall = _inputs(tmp_path / "tall.npz", batch=33)
    refused = _command("verify", engine, "--package", package.root, "--inputs", tall)
    assert refused.returncode == 2
    assert "Build it with a --profile that has these sizes." in refused.stderr


@nightly
@needs_polygraphy
def test_samples_with_labels_run_in_batches_that_a_profile_has(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    package = _package(tmp_path / "package")
    x = vectors(batch=100).inputs["x"]
    write_npz(tmp_path / "val.npz", {"x": x, "y": x, "tokens": x.argmax(axis=-1)})
    words = ["--package", package.root, "--inputs", tmp_path / "val.npz", "--labels", "tokens"]
    right = _engine_of(package, tmp_path / "right")
    equal = _command("verify", right, *words, "--json")
    assert equal.returncode == 0, equal.stderr
    content = json.loads(equal.stdout)
    assert (content["vector_sets"], content["accuracy"][0]["samples"]) == (25, 100)
    assert content["statistics"]["class_loads"] == []
    wrong = _engine_of(package, tmp_path / "wrong", scale=0.5)
    worse = _command("verify", wrong, *words)
    assert worse.returncode == 1
    assert "perplexity rose from" in worse.stderr


def test_verify_without_a_recorded_run_that_fits_is_refused(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    sets = (vectors(batch=2, seq=50, with_layer=False),)
    package = write_package(tmp_path / "package", with_layer=False, sets=sets)
    root = _engine_of(package, tmp_path / "engine")
    refused = _command("verify", root, "--package", package.root)
    assert refused.returncode == 2
    assert "no recorded run of the package is of sizes" in refused.stderr


BENCH = ("--threads", "1", "--min-time", "0s", "--warmup", "0ms", "--json")


@pytest.mark.usefixtures("without_driver")
def test_bench_is_refused_where_there_is_no_gpu(engine: Path, package: OnnxPackage):
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        moh_deploy.bench(engine, package=package.root)
    with pytest.raises(BackendError, match="no NVIDIA driver"):
        moh_deploy.bench(package.root, baselines=[engine])


def test_bench_of_an_engine_needs_its_package(engine: Path, package: OnnxPackage):
    with pytest.raises(ConfigError, match="holds no recorded runs") as refused:
        moh_deploy.bench(engine)
    assert "--package DIR" in str(refused.value.hint)
    with pytest.raises(ConfigError, match="is no engine: leave it out"):
        moh_deploy.bench(package.root, package=package.root)
    with pytest.raises(ConfigError, match="'dense' is a package run in another way") as refused:
        moh_deploy.bench(engine, package=package.root, baselines=["dense"])
    assert "--baseline plain-engine" in str(refused.value.hint)
    with pytest.raises(ConfigError, match="'plain-engine' is an engine without kernels, but"):
        moh_deploy.bench(package.root, baselines=["plain-engine"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"package": "other"}, "was not built from other, or that has changed since"),
        ({"gates": ["p55 < 1 ms"]}, "there is no metric 'p55'"),
        ({"inputs": ["none.npz"]}, "none.npz"),
    ],
    ids=["package", "gates", "inputs"],
)
def test_options_are_refused_before_an_engine_is_built(
    tmp_path: Path, options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    package = _package(tmp_path / "package")
    root = _engine_of(package, tmp_path / "engine")
    write_package(tmp_path / "other", with_layer=False)
    monkeypatch.setattr("moh_deploy.runtime.tensorrt.models.EngineDir.build_plain", pytest.fail)
    given = {"package": "package", "baselines": ["plain-engine"], **options}
    with pytest.raises(ConfigError, match=message):
        moh_deploy.bench(root, **given)


def test_the_plain_engine_is_opened_where_it_will_be_built(
    engine: Path, package: OnnxPackage, tmp_path: Path
):
    setting = BenchSetting("auto", None, None, tmp_path / "scratch")
    _, plain = find_candidates(setting, [engine], ["plain-engine"], package.root).entries
    assert plain.model == EngineDir(setting.plain_engine_dir)


_BENCH_WITH_A_PLAIN_ENGINE = """
import json, shutil, sys
import moh_deploy
from moh_deploy.runtime.tensorrt.models import EngineDir

engine, plain, package = sys.argv[1:]
EngineDir.build_plain = lambda engine, package, output, progress: shutil.copytree(plain, output)
report = moh_deploy.bench(engine, package=package, min_time=0.05, warmup=0)
print(json.dumps({row.contestant: row.is_baseline for row in report.results}))
"""


@needs_polygraphy
@nightly
@pytest.mark.parametrize("has_kernels", [True, False])
def test_an_engine_with_kernels_is_compared_with_one_without(
    fakes: Fakes, tmp_path: Path, has_kernels: bool
):
    simulate_gpu(fakes)
    package = _package(tmp_path / "package")
    plain = _engine_of(package, tmp_path / "plain")
    manifest = replace(MANIFEST, package_sha256=sha256_of(package.root / "manifest.json"))
    engine = write_engine(
        tmp_path / "engine", manifest if has_kernels else replace(manifest, layers=()), scale=1.0
    )
    ran = python(_BENCH_WITH_A_PLAIN_ENGINE, engine, plain, package.root)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    baseline = {"plain-engine": True} if has_kernels else {}
    assert found == {str(engine): False, **baseline}


@needs_polygraphy
@nightly
def test_bench_times_an_engine_beside_another_and_its_package(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    package = _package(tmp_path / "package")
    right = _engine_of(package, tmp_path / "right")
    wrong = _engine_of(package, tmp_path / "wrong", scale=1.5)
    baselines = ["--baseline", wrong, "--baseline", package.root]
    ran = _command("bench", right, "--package", package.root, *baselines, *BENCH)
    assert ran.returncode == 0, ran.stderr
    content = json.loads(ran.stdout)
    engine, other, on_cpu = content["results"]
    assert (engine["contestant"], engine["sizes"]) == (str(right), {"batch": 2, "seq": 3})
    assert set(engine["ratios"]) == {str(wrong), str(package.root)}
    assert engine["load_ms"] > 0
    assert engine["first_run_ms"] > 0
    assert "differs by" in other["agreement"]["reason"]
    assert on_cpu["agreement"]["reason"] is None
    assert content["runtime"].startswith("TensorRT 10.9.0.34 on a GPU, ONNX Runtime ")
    assert content["work"] == []
    judged = _command("bench", right, wrong, "--package", package.root, *BENCH, "--gate", "p50<9s")
    assert judged.returncode == 1, judged.stderr
    assert [gate["passed"] for gate in json.loads(judged.stdout)["gates"]] == [True, False]
    assert "sizes that the engine was built for it is not equal" in judged.stderr
