"""What a path names, and that it is opened in the way that was asked for."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.graph.forced_gates import fix_routing, fixed_input
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import FUNCTION_BODIES, RecordingRunner, Variant
from moh_deploy.runtime.models import OnnxFile, PackageDir
from moh_deploy.runtime.open_runner import find_deployed, find_model, open_runner
from moh_deploy.runtime.tensorrt.models import EngineDir
from tests.handmade_package import vectors, write_package
from tests.runtime.tensorrt.engines import write_engine


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
    for result, kept in zip(found, recording.results, strict=True):
        assert set(result) == {"y", "gates_0"}
        np.testing.assert_array_equal(result["gates_0"], kept["gates_0"])
