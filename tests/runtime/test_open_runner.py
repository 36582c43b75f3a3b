"""What a path names, and that it is opened in the way that was asked for."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.graph.forced_gates import fix_routing, fixed_input
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import FUNCTION_BODIES, RecordingRunner, Variant
from moh_deploy.runtime.models import OnnxFile, PackageDir
from moh_deploy.runtime.open_runner import find_deployed, find_model, open_runner
from moh_deploy.runtime.tensorrt.models import EngineDir
from moh_deploy.system.npz import read_npz, write_npz
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly
from tests.runtime.made_up_runtime import MadeUpDir, write_made_up
from tests.runtime.tensorrt.engines import write_engine
from tests.toy_add_on import add_ons_are_read_again, install


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


def test_each_kind_of_path_is_told(package: OnnxPackage, tmp_path: Path):
    engine = write_engine(tmp_path / "engine")
    assert find_model(package.root) == PackageDir(package.root)
    assert find_model(str(engine)) == EngineDir(engine)
    assert find_model(package.model_path) == OnnxFile(package.model_path)
    assert find_model(tmp_path / "missing.onnx") == OnnxFile(tmp_path / "missing.onnx")


def test_file_of_no_kind_is_refused(tmp_path: Path):
    (tmp_path / "model.pt").touch()
    assert find_model(tmp_path / "model.pt") is None
    with pytest.raises(ConfigError, match=r"model\.pt is no package, engine or ONNX model"):
        open_runner(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["missing", "model.onnx"])
def test_what_moh_deploy_did_not_write_is_no_package(package: OnnxPackage, name: str):
    found = find_deployed(package.root / name)
    with pytest.raises(PackageError, match=name):
        _ = found.manifest


def test_package_and_its_model_compute_the_same(package: OnnxPackage):
    for source in (package, package.root, package.model_path):
        with open_runner(source, Variant(kernels="off")) as runner:
            found = runner.run(vectors().inputs)
        np.testing.assert_allclose(found["y"], vectors().outputs["y"], rtol=1e-4, atol=1e-6)


def test_package_that_was_read_is_not_read_again(package: OnnxPackage):
    (package.root / "manifest.json").unlink()
    assert open_runner(package, FUNCTION_BODIES).describe().function_nodes == 1


def test_edits_are_made_in_their_order(package: OnnxPackage):
    gates = vectors().gates[0]
    seen: list[str] = []

    def fix(graph: onnx.GraphProto) -> None:
        fix_routing(graph, {"gates_0": gates})

    def look(graph: onnx.GraphProto) -> None:
        seen.extend(item.name for item in graph.input)

    variant = Variant(kernels="off").edited(fix).edited(look).returning(["y"])
    found = open_runner(package, variant).run({**vectors().inputs, fixed_input("gates_0"): gates})
    assert fixed_input("gates_0") in seen
    np.testing.assert_allclose(found["y"], vectors().outputs["y"], rtol=1e-4, atol=1e-6)


def test_engine_is_opened_in_no_other_way_than_it_was_built(tmp_path: Path):
    engine = write_engine(tmp_path / "engine")
    with pytest.raises(ConfigError, match="kernels is off, but what runs the layers"):
        open_runner(engine, Variant(kernels="off"))
    with pytest.raises(BackendError, match="inner values cannot be seen"):
        open_runner(engine, Variant().returning(["gates_0"]))
    with pytest.raises(ConfigError, match=r"runtime is openvino, but .* is an engine"):
        open_runner(engine, Variant(runtime="openvino"))


# A runtime that only the metadata of an add-on knows is run, verified, measured and refused.


__all__ = ["add_ons_are_read_again"]
pytestmark = pytest.mark.usefixtures("add_ons_are_read_again")


@pytest.fixture
def made_up(package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kind = f"{MadeUpDir.__module__}:{MadeUpDir.__name__}"
    install(tmp_path / "installed", monkeypatch, {"model_kinds": {"made-up": kind}})
    return write_made_up(tmp_path / "made-up", package)


def test_it_is_run(made_up: Path, tmp_path: Path):
    files = tmp_path / "in.npz", tmp_path / "out.npz"
    write_npz(files[0], vectors().inputs)
    report = moh_deploy.run(made_up, inputs=files[0], outputs=files[1])
    assert report.kernels.reason == "it has none"
    found = read_npz(files[1], error=ConfigError)["y"]
    np.testing.assert_allclose(found, vectors().outputs["y"], rtol=1e-4, atol=1e-6)


def test_it_is_verified_and_compared_with(made_up: Path, package: OnnxPackage):
    assert moh_deploy.verify(made_up).equal
    report = moh_deploy.verify(package.root, against=[made_up])
    assert (report.equal, report.reference) == (True, f"made-up {made_up}")


@nightly
def test_it_is_measured_here_and_in_a_process_of_its_own(made_up: Path, package: OnnxPackage):
    report = moh_deploy.bench(package.root, baselines=[made_up], min_time=0.0, warmup=0.0)
    found = report.results[1]
    assert found.contestant == str(made_up)
    assert found.agreement is not None
    assert found.agreement.reason is None
    assert found.fresh.load_ms is not None
    assert report.runtime.endswith(", made-up 1.0")


def test_what_needs_a_graph_refuses_it(made_up: Path):
    with pytest.raises(ConfigError, match="expected a package"):
        moh_deploy.bisect(made_up)
    with pytest.raises(ConfigError, match="no place to put logits"):
        moh_deploy.probe(made_up)


def test_runs_are_those_of_the_runner_and_what_is_kept_of_them_is_recorded(tmp_path: Path):
    package = write_package(tmp_path / "package")
    variant = Variant(kernels="off", extra_outputs=("gates_0",))
    steps: list[int] = []

    def step(number: int) -> nullcontext[None]:
        steps.append(number)
        return nullcontext()

    with open_runner(package, variant) as runner:
        recording = RecordingRunner(runner, frozenset({"gates_0"}), step)
        assert (recording.inputs, recording.outputs) == (runner.inputs, ("y", "gates_0"))
        assert recording.describe() == runner.describe()
        found = [recording.run(vectors(seed=seed).inputs) for seed in range(2)]
    assert steps == [0, 1]
    assert [list(result) for result in recording.results] == [["gates_0"], ["gates_0"]]
    for one, kept in zip(found, recording.results, strict=True):
        assert set(one) == {"y", "gates_0"}
        np.testing.assert_array_equal(one["gates_0"], kept["gates_0"])
