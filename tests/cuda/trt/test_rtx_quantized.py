"""Q/DQ around MoH layers by ModelOpt's conventions, built with the plugins by TensorRT-RTX.

docs/precision.md says what this shows, and where it ends.
"""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import moh_deploy
from moh_deploy.graph.integer_policy import no_stored_matrix, products_of_scores
from moh_deploy.graph.load_model import store_array
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.tensorrt.engine_graph import read_graph
from moh_deploy.runtime.tensorrt.profiles import make_profiles
from moh_deploy.system.npz import Array
from tests.cuda.trt.packages import FORMS, SMALL, export, profile
from tests.cuda.trt.rtx import Built, build
from tests.nightly import nightly

INT8, FP8 = np.dtype(np.int8), np.dtype(ml_dtypes.float8_e4m3fn)
_LARGEST = {INT8: 127.0, FP8: 448.0}
_RANGE = 8.0  # of what is read: nothing runs here
Lowered = Callable[[], ir.Model]


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """The model that TensorRT is given for the digits model in float16."""
    folder = tmp_path_factory.mktemp("digits")
    half = folder / "float16"
    moh_deploy.precision(export(FORMS["digits"], folder), to="float16", output=half)
    package = OnnxPackage.open(half)

    def read() -> ir.Model:
        profiles = make_profiles([], package.manifest)
        return read_graph(package, profiles, no_plugins=None, only_kernels=True).lowered({}).model

    return read


def quantize(model: ir.Model, dtype: np.dtype, *, zero_point: int = 0) -> int:
    """Bring the products with stored weights to a dtype, those of router scores left out.

    What is read has one scale; weights one for each column in int8, one in FP8, and are stored.

    Returns:
        How many products there are.
    """
    gates = [node.inputs[3] for node in model.graph if node.op_type == "MoHAttention"]
    scores = {product for value in gates for product in products_of_scores(value)}
    rounded: dict[ir.Value, ir.Value] = {}
    products = [
        node
        for node in model.graph
        if node.op_type in ("MatMul", "Gemm")
        and node not in scores
        and no_stored_matrix(node) is None
    ]
    for node in products:
        x, weight = node.inputs[:2]
        if x not in rounded:
            step = np.asarray(_RANGE / _LARGEST[dtype], np.float16)
            zero = np.asarray(zero_point, dtype)
            rounded[x] = _back(model.graph, x, _to(model.graph, x, step, zero), step, zero)
        if weight not in rounded:
            exact = weight.const_value.numpy()
            largest = np.abs(exact).max(axis=0 if dtype == INT8 else None)
            step = (largest / _LARGEST[dtype]).astype(np.float16)
            stored = store_array(model.graph, f"{weight.name}.few", (exact / step).astype(dtype))
            rounded[weight] = _back(model.graph, weight, stored, step, np.zeros(step.shape, dtype))
        node.replace_input_with(0, rounded[x])
        node.replace_input_with(1, rounded[weight])
    return len(products)


def _to(graph: ir.Graph, x: ir.Value, step: Array, zero: Array) -> ir.Value:
    operands = [store_array(graph, f"{x.name}.{n}", a) for n, a in (("s", step), ("z", zero))]
    node = ir.node("QuantizeLinear", [x, *operands], name=f"{x.name}.Q")
    return _placed(graph, node, x, f"{x.name}.few")


def _back(graph: ir.Graph, of: ir.Value, few: ir.Value, step: Array, zero: Array) -> ir.Value:
    operands = [store_array(graph, f"{few.name}.{n}", a) for n, a in (("s", step), ("z", zero))]
    node = ir.node("DequantizeLinear", [few, *operands], {"axis": 1}, name=f"{few.name}.DQ")
    return _placed(graph, node, few, f"{of.name}.rounded")


def _placed(graph: ir.Graph, node: ir.Node, behind: ir.Value, name: str) -> ir.Value:
    node.outputs[0].name = name
    maker = behind.producer()
    if maker is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(maker, node)
    return node.outputs[0]


def built(model: ir.Model, folder: Path, library: Path, target: str) -> Built:
    proto = ir.to_proto(model)
    return build(
        proto,
        folder,
        library=library,
        profiles=[profile(proto, SMALL)],
        compute_capabilities=(target,),
    )


@nightly
@pytest.mark.parametrize(("dtype", "target"), [(INT8, "SM86"), (INT8, "SM89"), (FP8, "SM89")])
def test_products_around_the_plugins_are_quantized(
    lowered: Lowered, fake_library: Path, tmp_path: Path, dtype: np.dtype, target: str
):
    model = lowered()
    routers = sum(node.op_type == "MoHRouter" for node in model.graph)
    stored = [n for n in model.graph if n.op_type in ("MatMul", "Gemm") and not no_stored_matrix(n)]
    count = quantize(model, dtype)
    assert count == len(stored) - routers
    found = built(model, tmp_path, fake_library, target)
    assert found.engine, found.log
    assert found.plugins.count("MoHAttention") == found.plugins.count("MoHRouter") == routers
    # What several products read is rounded once.
    assert 0 < found.layers.count("QUANTIZE") < count
    assert found.layers.count("DEQUANTIZE") == found.layers.count("QUANTIZE") + count


@nightly
def test_fp8_is_refused_where_the_gpu_has_none(
    lowered: Lowered, fake_library: Path, tmp_path: Path
):
    model = lowered()
    quantize(model, FP8)
    found = built(model, tmp_path, fake_library, "SM86")
    assert found.parsed
    assert not found.engine
    assert "sm86, because the model contains HW-specific datatypes: fp8_e4m3" in found.log


@nightly
def test_zero_points_are_refused(lowered: Lowered, fake_library: Path, tmp_path: Path):
    """`precision --scales static` writes them where one side of a range is longer."""
    model = lowered()
    quantize(model, INT8, zero_point=3)
    (error, *_) = built(model, tmp_path, fake_library, "SM86").errors
    assert "Non-zero zero point is not supported" in error
