"""Other runtimes take what `inline` writes, and compute the same: those that are installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.export_package import export_package
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import tolerance_for
from tests import small_moh
from tests.edge_case_package import write_edge_package
from tests.skips import has_onnxruntime_web
from tests.trt_packages import required_rtx

pytestmark = pytest.mark.nightly

RUN_IN_WEB = Path(__file__).with_name("run_in_web.cjs")


@pytest.fixture(scope="module", params=["two layers", "two layers, float16", "exported"])
def inlined(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, OnnxPackage]:
    """A model in standard operators, and the package that it was made of."""
    folder = tmp_path_factory.mktemp("inlined")
    root = folder / "package"
    if request.param == "exported":
        specs = ("x:[batch=2,seq=7,8]:float32",)
        export_package(ExportOptions(small_moh.build(), root, input_specs=specs))
    else:
        write_edge_package(root)
    if request.param.endswith("float16"):
        moh_deploy.precision(root, to="float16", output=folder / "half")
        root = folder / "half"
    moh_deploy.inline(root, output=folder / "model.onnx")
    return folder / "model.onnx", OnnxPackage.open(root)


def assert_right(package: OnnxPackage, found: dict[str, Array], number: int = 0) -> None:
    for name, expected in package.vectors[number].outputs.items():
        largest = float(np.abs(expected).max())
        limit = tolerance_for(package.manifest.precision).limit(largest)
        got = np.asarray(found[name], np.float64).reshape(expected.shape)
        np.testing.assert_allclose(got, expected, rtol=0, atol=limit)


def test_openvino(inlined: tuple[Path, OnnxPackage]):
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("no OpenVINO: pip install 'moh-deploy[bench]'")
    import openvino

    path, package = inlined
    # By itself it computes in bfloat16 on processors that have it.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    for number, vectors in enumerate(package.vectors):
        results = compiled(dict(vectors.inputs))
        assert_right(package, {name: results[name] for name in vectors.outputs}, number)


def test_onnxruntime_web(inlined: tuple[Path, OnnxPackage], tmp_path: Path):
    if not has_onnxruntime_web():
        pytest.skip("no onnxruntime-web: npm install onnxruntime-web, and set NODE_PATH")
    path, package = inlined
    given = {
        name: {"dtype": array.dtype.name, "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in package.vectors[0].inputs.items()
    }
    (tmp_path / "run.json").write_text(json.dumps({"model": str(path), "inputs": given}))
    ended = subprocess.run(
        ["node", RUN_IN_WEB, tmp_path / "run.json"], capture_output=True, text=True, check=True
    )
    assert_right(package, json.loads(ended.stdout))


def test_parser_of_tensorrt(inlined: tuple[Path, OnnxPackage]):
    required_rtx()
    import tensorrt_rtx

    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    network = tensorrt_rtx.Builder(logger).create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(inlined[0]))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
