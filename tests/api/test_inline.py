import importlib.util
import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import moh_deploy
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.frontend.export_package import export_package
from moh_deploy.package import OnnxPackage
from moh_deploy.package.manifest_json import MANIFEST_NAME, manifest_text
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.tolerances import tolerance_for
from tests import small_moh
from tests.edge_case_package import inputs, write_edge_package
from tests.handmade_package import write_package
from tests.nightly import nightly, sampled
from tests.skips import has_onnxruntime_web
from tests.trt_packages import required_rtx
from tests.two_layers import write_two_layers


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    """Two layers, whose routers have two function bodies."""
    return write_edge_package(tmp_path / "package")


def assert_gives_what_was_recorded(path: Path, package: OnnxPackage) -> None:
    """It does in plain ONNX Runtime, loaded by its path."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for vectors in package.vectors:
        found = session.run(None, dict(vectors.inputs))
        for got, expected in zip(found, vectors.outputs.values(), strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_model_has_standard_operators_only_and_gives_the_same(package: OnnxPackage, tmp_path: Path):
    report = moh_deploy.inline(package.root, output=tmp_path / "flat.onnx")
    model = onnx.load(tmp_path / "flat.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert report.operators == len(model.graph.node)
    assert report.bytes == (tmp_path / "flat.onnx").stat().st_size
    assert report.parity.equal
    assert report.parity.routing_agreement == 1.0
    assert report.weights is None
    assert_gives_what_was_recorded(tmp_path / "flat.onnx", package)


def test_reference_evaluator_gives_what_was_recorded(package: OnnxPackage, tmp_path: Path):
    moh_deploy.inline(package.root, output=tmp_path / "flat.onnx")
    (got,) = ReferenceEvaluator(onnx.load(tmp_path / "flat.onnx")).run(None, inputs())
    np.testing.assert_allclose(got, package.vectors[0].outputs["y"], atol=1e-5)


@sampled(2)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_judged_by_its_own_rule(package: OnnxPackage, tmp_path: Path, dtype: str):
    moh_deploy.precision(package.root, to=dtype, output=tmp_path / "half")
    report = moh_deploy.inline(tmp_path / "half", output=tmp_path / "half.onnx")
    assert report.parity.max_abs_error > 1e-5  # or nothing was rounded
    emulated = report.parity.kernels.emulated_dtype
    assert emulated == ("bfloat16" if dtype == "bfloat16" else None)


def test_choices_by_size_leave_no_trace(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    moh_deploy.tune(package.root, choose={"all": "sparse", "all[batch<=1]": "dense"})
    assert "If" in {node.op_type for node in onnx.load(package.model_path).graph.node}
    moh_deploy.inline(package.root, output=tmp_path / "flat.onnx")
    assert "If" not in {node.op_type for node in onnx.load(tmp_path / "flat.onnx").graph.node}
    assert_gives_what_was_recorded(tmp_path / "flat.onnx", package)


def test_metadata_stays(tmp_path: Path):
    def tell(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {"trained": "here"})
        model.doc_string, model.producer_name = "a model", "a trainer"

    package = write_edge_package(tmp_path / "package", tell)
    moh_deploy.inline(package.root, output=tmp_path / "flat.onnx")
    model = onnx.load(tmp_path / "flat.onnx")
    assert [(prop.key, prop.value) for prop in model.metadata_props] == [("trained", "here")]
    assert (model.doc_string, model.producer_name) == ("a model", "a trainer")


def test_weights_lie_beside_the_model_where_they_do_in_the_package(tmp_path: Path):
    package = write_package(tmp_path / "package", external_data=True)
    report = moh_deploy.inline(package.root, output=tmp_path / "new" / "flat.onnx")
    assert report.weights == tmp_path / "new" / "flat.onnx.data"
    found = {path.name for path in (tmp_path / "new").iterdir()}
    assert found == {"flat.onnx", "flat.onnx.data"}
    assert_gives_what_was_recorded(tmp_path / "new" / "flat.onnx", package)


def test_weights_are_in_no_file_that_a_model_cannot_name(tmp_path: Path):
    package = write_package(tmp_path / "package", external_data=True)
    with pytest.raises(PackageError, match="cannot refer to weights"):
        moh_deploy.inline(package.root, output=tmp_path / "flat\udcff")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def weights_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(item for item in model.graph.initializer if item.name == name)


def other_choice(model: onnx.ModelProto) -> None:
    """Route the other way round; what is behind it is right."""
    weight = weights_of(model, "routed_weight_1")
    values: Array = -onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


def other_body(model: onnx.ModelProto) -> None:
    """Let one body compute something else than its op."""
    body = next(function for function in model.functions if function.name == "MoHAttention")
    next(node for node in body.node if node.op_type == "Softmax").op_type = "LogSoftmax"


@pytest.mark.parametrize("plant", [other_choice, other_body])
def test_what_is_not_equal_is_not_written(tmp_path: Path, plant: object):
    package = write_edge_package(tmp_path / "package", plant)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    earlier = package.model_path.read_bytes()
    (tmp_path / "out" / "flat.onnx").write_bytes(earlier)
    with pytest.raises(ValidationError, match="the model in standard operators is not equal"):
        moh_deploy.inline(package.root, output=tmp_path / "out" / "flat.onnx")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["flat.onnx"]
    assert (tmp_path / "out" / "flat.onnx").read_bytes() == earlier


def test_checkpoint_of_the_user_is_not_overwritten(package: OnnxPackage, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "moh.pt", "w") as checkpoint:
        checkpoint.writestr("moh/data.pkl", b"weights")
    before = (tmp_path / "moh.pt").read_bytes()
    with pytest.raises(PackageError, match=r"moh\.pt exists and is not an ONNX model"):
        moh_deploy.inline(package.root, output=tmp_path / "moh.pt")
    assert (tmp_path / "moh.pt").read_bytes() == before


def test_the_original_itself_is_not_overwritten(tmp_path: Path):
    package = write_package(tmp_path / "package")
    original = tmp_path / "original.onnx"
    original.write_bytes(package.model_path.read_bytes())
    of_it = replace(package.manifest, checkpoint_sha256=sha256_of(original))
    (package.root / MANIFEST_NAME).write_text(manifest_text(of_it))
    with pytest.raises(ConfigError, match=r"original\.onnx, which .* was made from"):
        moh_deploy.inline(package.root, output=original)


@nightly
def test_weights_of_another_model_are_not_overwritten(tmp_path: Path):
    package = write_package(tmp_path / "package", external_data=True)
    (tmp_path / "flat.onnx.data").write_bytes(b"of another model")
    with pytest.raises(PackageError, match="exists and is not a file of weights of"):
        moh_deploy.inline(package.root, output=tmp_path / "flat.onnx")
    (tmp_path / "flat.onnx.data").unlink()
    for _ in range(2):  # its own are replaced
        moh_deploy.inline(package.root, output=tmp_path / "flat.onnx")
    assert_gives_what_was_recorded(tmp_path / "flat.onnx", package)


def test_no_file_is_written_into_the_package(package: OnnxPackage):
    before = sorted(package.root.iterdir())
    with pytest.raises(ConfigError, match="inside of the package"):
        moh_deploy.inline(package.root, output=package.model_path)
    assert sorted(package.root.iterdir()) == before
    assert moh_deploy.verify(package.root).equal


def test_a_directory_is_no_place_for_a_model(package: OnnxPackage, tmp_path: Path):
    with pytest.raises(PackageError, match="is a directory") as error:
        moh_deploy.inline(package.root, output=tmp_path)
    assert error.value.hint == f"Name the file: --output {tmp_path / 'model.onnx'}"


# Other runtimes take what `inline` writes, and compute the same: those that are installed.


RUN_IN_WEB = Path(__file__).with_name("run_in_web.cjs")


@pytest.fixture(scope="module", params=["two layers", "two layers, float16", "exported"])
def inlined(request, tmp_path_factory) -> tuple[Path, OnnxPackage]:
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


@nightly
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


@nightly
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


@nightly
def test_parser_of_tensorrt(inlined: tuple[Path, OnnxPackage]):
    required_rtx()
    import tensorrt_rtx

    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    network = tensorrt_rtx.Builder(logger).create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(inlined[0]))
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
