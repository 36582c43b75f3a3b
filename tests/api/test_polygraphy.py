"""Our models are runners of Polygraphy's, and its runners are references of ours."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import Array
from tests.api.test_verify_against import write_model
from tests.fake_original import FakeOriginal
from tests.fakes import Fakes, fakes
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import MANIFEST, python, simulate_gpu, write_engine

__all__ = ["fakes"]

FEEDS = [vectors(seed=seed, batch=2 + seed).inputs for seed in range(2)]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("polygraphy") is None,
    reason="Polygraphy is not installed: pip install 'moh-deploy[polygraphy]'",
)


def ran(*runners: object) -> list[tuple[str, list[dict[str, Array]]]]:
    """Run them as users do, and return the outputs of each runner and iteration."""
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(list(runners), data_loader=FEEDS)
    return [
        (name, [dict(iteration.items()) for iteration in iterations])
        for name, iterations in results
    ]


def test_kernels_function_bodies_and_a_plain_model_run_in_one_comparator(tmp_path: Path):
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    required_library()
    root = write_package(tmp_path / "package").root
    runners = [
        moh_deploy.polygraphy_runner(root, kernels="require", name="kernels"),
        moh_deploy.polygraphy_runner(root, kernels="off", optimize=False),
        moh_deploy.polygraphy_runner(write_model(tmp_path / "plain.onnx")),
    ]
    saved = tmp_path / "results.json"
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(runners, data_loader=FEEDS, save_outputs_path=str(saved))
        compare = SimpleCompareFunc(atol=1e-4, check_error_stat="max")
        accuracy = Comparator.compare_accuracy(results, compare_func=compare)
    assert bool(accuracy)
    assert saved.is_file()
    assert list(results.keys()) == [
        "kernels",
        f"package {root}, kernels: off, not optimised",
        f"ONNX model {tmp_path / 'plain.onnx'}",
    ]
    for index, feeds in enumerate(FEEDS):
        np.testing.assert_allclose(
            results["kernels"][index]["y"], vectors(seed=index, batch=2 + index).outputs["y"], 1e-4
        )
        assert results["kernels"][index]["y"].shape == feeds["x"].shape


def test_metadata_is_the_models_own_and_only_of_a_loaded_model(tmp_path: Path):
    runner = moh_deploy.polygraphy_runner(write_package(tmp_path / "package").root)
    with runner:
        metadata = runner.get_input_metadata(use_numpy_dtypes=False)
        assert str(metadata["x"].dtype) == "float32"
        assert list(metadata["x"].shape) == [None, None, 8]
        runner.infer(FEEDS[0])
        assert runner.last_inference_time() > 0
    with runner:  # again
        assert runner.infer(FEEDS[1])["y"].shape == FEEDS[1]["x"].shape
    assert not runner.is_active


def test_gates_are_outputs_where_they_are_asked_for(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    ((_, iterations),) = ran(moh_deploy.polygraphy_runner(root, gates=True))
    assert [list(iteration) for iteration in iterations] == [["y", "gates_0"]] * 2


def test_original_model_takes_names_from_its_package(tmp_path: Path):
    root = write_package(tmp_path / "package").root
    ((name, iterations),) = ran(moh_deploy.polygraphy_runner(FakeOriginal(2), package=root))
    assert name == "original model"
    np.testing.assert_array_equal(iterations[1]["y"], 2 * FEEDS[1]["x"])
    with pytest.raises(ConfigError, match="an original model has no names"):
        moh_deploy.polygraphy_runner(FakeOriginal(2))


def test_runners_of_polygraphys_are_references(tmp_path: Path):
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    root = write_package(tmp_path / "package").root
    right, wrong = (
        OnnxrtRunner(SessionFromOnnx(str(write_model(path, scale=scale))), name=path.stem)
        for path, scale in ((tmp_path / "right.onnx", 1.0), (tmp_path / "wrong.onnx", 1.5))
    )
    ours = moh_deploy.polygraphy_runner(root, kernels="off", gates=True, name="ours")
    report = moh_deploy.verify(root, against=[right, wrong, ours])
    found = [
        (comparison.reference, comparison.equal, comparison.has_routing)
        for comparison in report.comparisons
    ]
    assert found == [
        ("Polygraphy runner right", True, False),
        ("Polygraphy runner wrong", False, False),
        ("Polygraphy runner ours", True, True),
    ]


@nightly
def test_engine_is_a_runner(fakes: Fakes, tmp_path: Path):
    simulate_gpu(fakes)
    root = write_engine(tmp_path / "engine")
    done = python(
        """
import json, sys
import numpy as np
import moh_deploy
runner = moh_deploy.polygraphy_runner(sys.argv[1])
x = np.ones((2, 3, 8), np.float32)
with runner:
    y = runner.infer({"x": x})["y"]
print(json.dumps([runner.name, bool((y == 2 * x).all())]))
""",
        root,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [f"engine {root}", True]


@nightly
def test_engine_of_the_other_tensorrt_is_refused_before_polygraphy_decides(
    fakes: Fakes, tmp_path: Path
):
    simulate_gpu(fakes, module="tensorrt_rtx")
    manifest = replace(
        MANIFEST,
        backend="tensorrt-rtx",
        versions={"TensorRT-RTX": "10.9.0.34"},
        compute_capabilities=("8.9",),
    )
    root = write_engine(tmp_path / "engine", manifest)
    package = write_package(tmp_path / "package").root
    code = """
import sys
import moh_deploy
moh_deploy.polygraphy_runner(sys.argv[1])
moh_deploy.polygraphy_runner(sys.argv[2])
"""
    assert python(code, root, package).returncode == 0
    refused = python(code, package, root)
    assert "Polygraphy was imported for the other TensorRT" in refused.stderr


def test_what_cannot_be_a_runner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_package(tmp_path / "package").root
    with pytest.raises(ConfigError, match=r"gates are asked of .*, and a package alone has them"):
        moh_deploy.polygraphy_runner(write_model(tmp_path / "plain.onnx"), gates=True)
    with pytest.raises(ConfigError, match="gates are asked of an original model"):
        moh_deploy.polygraphy_runner(FakeOriginal(2), gates=True, package=root)
    with pytest.raises(ConfigError, match="is no original model: leave it out"):
        moh_deploy.polygraphy_runner(root, package=root)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="Polygraphy is not installed") as refused:
        moh_deploy.polygraphy_runner(root)
    assert refused.value.hint == "pip install 'moh-deploy[polygraphy]'"


def test_what_is_no_reference_is_refused(tmp_path: Path):
    package: OnnxPackage = write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="against holds a int"):
        moh_deploy.verify(package.root, against=[3])
