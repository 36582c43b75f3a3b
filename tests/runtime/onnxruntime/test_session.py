import gc
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.errors import BackendError, ConfigError, PackageError
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.onnxruntime.session import crash_of_plain_session, open_session
from moh_deploy.runtime.onnxruntime.values import from_dlpack, to_dlpack
from moh_deploy.system.isolate import child_environment
from moh_deploy.system.npz import BFLOAT16, Array
from moh_deploy.validate.reference.reference import read_subject
from tests.handmade_package import model, vectors, write_package
from tests.nightly import nightly, sampled


def saved(tmp_path: Path, content: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(content, path)
    return path


def one_node(op: str, dtype: int, **attributes: object) -> onnx.ModelProto:
    """Return y = op(x) on a vector of free length."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", dtype, ["n"])],
        [helper.make_tensor_value_info("y", dtype, ["n"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (ModuleType("onnxruntime"), "cannot import name '__version__' from 'onnxruntime'"),
        (None, "import of onnxruntime halted"),
    ],
    ids=["a folder of an uninstalled wheel", "nothing"],
)
def test_onnxruntime_that_cannot_be_imported_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: ModuleType | None, why: str
):
    monkeypatch.setitem(sys.modules, "onnxruntime", left)
    with pytest.raises(BackendError, match=why) as refused:
        open_session(write_package(tmp_path / "package"))
    assert "pip install --force-reinstall onnxruntime" in str(refused.value.hint)


@pytest.mark.parametrize("optimize", [True, False])
def test_index_out_of_range_is_the_callers_fault(tmp_path: Path, optimize: bool):
    text = "g (int64[batch, seq] ids) => (float[batch, seq, 2] y) { y = Gather (table, ids) }"
    content = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}')
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    content.graph.initializer.append(numpy_helper.from_array(table, "table"))
    runner = open_session(saved(tmp_path, content), Variant(optimize=optimize))
    ids = np.array([[1, 9, 0]])
    np.testing.assert_array_equal(runner.run({"ids": ids})["y"], table[ids])
    ids[0, 2] = 10
    with pytest.raises(ConfigError, match=r"input 'ids' is 10 at \[0, 2\], expected -10 to 9"):
        runner.run({"ids": ids})


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("external_data", [True, False])
def test_package_runs_and_gives_gates_as_extra_output(
    tmp_path: Path, optimize: bool, external_data: bool
):
    package = write_package(tmp_path / "package", external_data=external_data)
    runner = open_session(package, Variant(extra_outputs=package.gate_names, optimize=optimize))
    expected = vectors(batch=1, seq=7, seed=3)
    got = runner.run(expected.inputs)
    assert list(got) == ["y", "gates_0"]
    np.testing.assert_allclose(got["y"], expected.outputs["y"], atol=1e-5)
    np.testing.assert_allclose(got["gates_0"], expected.gates[0], atol=1e-5)


def test_extra_output_that_is_an_output_already_comes_once(tmp_path: Path):
    runner = open_session(
        write_package(tmp_path / "package"),
        Variant(
            extra_outputs=(
                "y",
                "y",
            )
        ),
    )
    assert [output.name for output in runner.session.get_outputs()] == ["y"]


@pytest.mark.parametrize("spins", [True, False])
def test_threads_wait_in_a_loop_only_where_that_is_asked_for(tmp_path: Path, spins: bool):
    runner = open_session(write_package(tmp_path / "package"), Variant(spins=spins))
    options = runner.session.get_session_options()
    key = "session.intra_op.allow_spinning"
    if spins:
        with pytest.raises(RuntimeError, match=key):  # ONNX Runtime's own default
            options.get_session_config_entry(key)
    else:
        assert options.get_session_config_entry(key) == "0"


def test_memory_of_a_large_run_is_given_back_where_threads_do_not_spin(tmp_path: Path):
    runner = open_session(write_package(tmp_path / "package"), Variant(kernels="off", spins=False))

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    runner.run(vectors(batch=1, seq=7, seed=3).inputs)
    before = resident_bytes()
    x = np.ones((1, 2000, 8), np.float32)  # scores are of 4 x 2000 x 2000 floats
    runner.run({"x": x})
    assert resident_bytes() - before < 2**25


def test_what_is_compared_does_not_spin(tmp_path: Path):
    subject = read_subject(write_package(tmp_path / "package").root, None, "off")
    with subject.load() as runner:
        assert isinstance(runner, OrtRunner)
        options = runner.session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_unknown_extra_output_is_refused(tmp_path: Path):
    with pytest.raises(BackendError, match="no value 'gates_1'"):
        open_session(write_package(tmp_path / "package"), Variant(extra_outputs=("gates_1",)))


def test_moh_node_without_name_is_refused(tmp_path: Path):
    content = model()
    content.graph.node[2].name = ""
    with pytest.raises(PackageError, match=r"a MoHAttention node has no name.* computes 'heads'"):
        open_session(saved(tmp_path, content))


@sampled(4)
@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (TensorProto.BFLOAT16, np.array([1.5, np.nan, -np.inf], ml_dtypes.bfloat16)),
        (TensorProto.FLOAT16, np.array([1.5, np.nan], np.float16)),
        (TensorProto.FLOAT, np.array([1.5, np.nan], np.float32)),
        (TensorProto.DOUBLE, np.array([1.5], np.float64)),
        (TensorProto.INT64, np.array([-(2**63), 3])),
        (TensorProto.UINT8, np.array([255], np.uint8)),
        (TensorProto.BOOL, np.array([True, False])),
        (TensorProto.BFLOAT16, np.zeros(0, ml_dtypes.bfloat16)),
    ],
)
def test_arrays_of_every_dtype_pass_through(tmp_path: Path, dtype: int, array: np.ndarray):
    got = open_session(saved(tmp_path, one_node("Identity", dtype))).run({"x": array})["y"]
    assert (got.dtype, got.tobytes()) == (array.dtype, array.tobytes())
    assert got.flags.writeable


def test_array_that_is_not_contiguous_is_read_right(tmp_path: Path):
    for dtype, onnx_dtype in [
        (np.float32, TensorProto.FLOAT),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    ]:
        array = np.arange(8).astype(dtype)[::2]
        got = open_session(saved(tmp_path, one_node("Identity", onnx_dtype))).run({"x": array})
        assert got["y"].tolist() == [0, 2, 4, 6]


def test_inputs_are_checked(tmp_path: Path):
    runner = open_session(write_package(tmp_path / "package"))
    with pytest.raises(ConfigError, match="axis 2 is fixed at 8, got 9"):
        runner.run({"x": np.zeros((1, 1, 9), np.float32)})


def test_missing_file_and_file_that_is_no_model_are_refused(tmp_path: Path):
    with pytest.raises(PackageError, match=r"none\.onnx does not exist"):
        open_session(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(PackageError, match=r"bad\.onnx cannot be read as an ONNX model"):
        open_session(tmp_path / "bad.onnx")


def _unknown_op(tmp_path: Path) -> object:
    return open_session(saved(tmp_path, one_node("NoSuchOp", TensorProto.FLOAT)))


def _missing_weights(tmp_path: Path) -> object:
    root = write_package(tmp_path / "package", external_data=True).root
    (root / "model.onnx.data").unlink()
    return open_session(root / "model.onnx")


@pytest.mark.parametrize(
    ("provoke", "message"),
    [
        (_unknown_op, "failed while loading the model: .*NoSuchOp"),
        (_missing_weights, r"failed while loading the model: .*model\.onnx\.data"),
    ],
)
def test_failure_to_load_is_one_line_and_silent_on_stderr(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    provoke: Callable[[Path], object],
    message: str,
):
    with pytest.raises(BackendError, match=message) as error:
        provoke(tmp_path)
    assert "\n" not in error.value.message
    assert ".cc:" not in error.value.message
    assert "ONNXRuntimeError" not in error.value.message
    assert capfd.readouterr().err == ""


def test_failure_to_run_names_the_node(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    content = one_node("Identity", TensorProto.FLOAT)
    content.graph.node.insert(0, helper.make_node("Constant", [], ["five"], value_ints=[5]))
    content.graph.node[1].CopyFrom(
        helper.make_node("Reshape", ["x", "five"], ["y"], name="to_five")
    )
    runner = open_session(saved(tmp_path, content))
    with pytest.raises(BackendError, match=r"failed while running the model: .*'to_five'"):
        runner.run({"x": np.zeros(4, np.float32)})
    assert capfd.readouterr().err == ""


def test_refusal_to_run_on_nothing_names_the_empty_axis(tmp_path: Path):
    runner = open_session(write_package(tmp_path / "package"), Variant(kernels="off"))
    message = (
        r"input 'x' is float32\[2, 0, 8\], with size 0 on axis 1 \('seq'\), expected 1 or more\."
        " ONNX Runtime failed while running the model: .*Reshape"
    )
    nothing = {"x": np.zeros((2, 0, 8), np.float32)}
    for run in (runner.run, lambda inputs: runner.bound(inputs)()):
        with pytest.raises(BackendError, match=message) as error:
            run(nothing)
        assert error.value.hint is not None


def test_threads_and_optimisation_reach_the_session(tmp_path: Path, monkeypatch):
    seen: list[tuple[int, ort.GraphOptimizationLevel]] = []
    create = ort.InferenceSession

    def spy(content: str, options: ort.SessionOptions, **rest: object) -> ort.InferenceSession:
        seen.append((options.intra_op_num_threads, options.graph_optimization_level))
        return create(content, options, **rest)

    path = saved(tmp_path, one_node("Identity", TensorProto.FLOAT))
    monkeypatch.setattr(ort, "InferenceSession", spy)
    open_session(path, Variant(threads=1))
    open_session(path, Variant(optimize=False))
    level = ort.GraphOptimizationLevel
    assert seen == [(1, level.ORT_ENABLE_ALL), (0, level.ORT_DISABLE_ALL)]


def float16_that_is_transposed_before_a_product(weight: Array, shape: tuple[int, ...]):
    """Return a model [A, B, C] -> [B, A, D] on which an optimisation of ONNX Runtime dies."""
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["low"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "turned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float16), "weight")],
    )
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_float16_that_is_transposed_before_a_product_ends_no_process(tmp_path: Path):
    """In a process of its own: ONNX Runtime dies of the optimisation that is left out."""
    rng = np.random.default_rng(0)
    x, weight = rng.random((2, 3, 4), np.float32), rng.random((4, 5), np.float32)
    path = saved(tmp_path, float16_that_is_transposed_before_a_product(weight, x.shape))
    np.save(tmp_path / "x.npy", x)
    run = (
        "import sys, numpy, pathlib\n"
        "from moh_deploy.runtime.onnxruntime.session import open_session\n"
        "folder = pathlib.Path(sys.argv[1]); x = numpy.load(folder / 'x.npy')\n"
        "numpy.save(folder / 'y.npy', open_session(folder / 'model.onnx').run({'x': x})['y'])"
    )
    command = [sys.executable, "-c", run, str(path.parent)]
    subprocess.run(command, check=True, env=child_environment())
    expected = x.transpose(1, 0, 2).astype(np.float64) @ weight
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=5e-3)


@pytest.mark.parametrize("is_turned", [True, pytest.param(False, marks=nightly)])
def test_float16_that_ends_a_plain_session_is_said_with_the_way_around(
    tmp_path: Path, is_turned: bool
):
    model = float16_that_is_transposed_before_a_product(np.ones((4, 5), np.float32), (2, 3, 4))
    if not is_turned:
        model.graph.node[1].attribute[0].CopyFrom(onnx.helper.make_attribute("perm", [0, 1, 2]))
    onnx.save(model, tmp_path / "model.onnx")
    found = crash_of_plain_session(tmp_path / "model.onnx")
    assert (found is not None) is is_turned
    assert found is None or found.endswith(
        "on model.onnx: set optimization.disable_specified_optimizers of it to"
        " MatmulTransposeFusion, as moh-deploy does."
    )


DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64", BFLOAT16)


class Capsule:
    """What a reader holds that took a capsule and nothing else."""

    def __init__(self, source: object) -> None:
        self._capsule = source.__dlpack__()  # type: ignore[attr-defined]
        self._device = source.__dlpack_device__()  # type: ignore[attr-defined]

    def __dlpack__(self, **given: object) -> object:
        return self._capsule

    def __dlpack_device__(self) -> object:
        return self._device


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)], ids=str)
def test_array_passes_bit_for_bit(dtype: object, shape: tuple[int, ...]):
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    got = from_dlpack(to_dlpack(array))
    np.testing.assert_array_equal(got, array, strict=True)


def test_part_of_an_array_passes():
    array = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(from_dlpack(to_dlpack(array[:, 1:3])), array[:, 1:3])


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16], ids=str)
def test_capsule_outlives_the_array_that_it_was_made_of(dtype: object):
    kept = [np.full(100, number).astype(dtype) for number in range(50)]
    capsules = [Capsule(to_dlpack(array)) for array in kept]
    del kept
    gc.collect()
    # Whatever was freed is written over.
    others = [np.full(100, 99).astype(dtype) for _ in range(200)]
    for number, capsule in enumerate(capsules):
        assert set(from_dlpack(capsule).astype(float)) == {number}
    assert others


def test_copy_does_not_follow_its_source():
    array = np.zeros(3, np.float32)
    copy = from_dlpack(to_dlpack(array))
    array[:] = 1
    assert not copy.any()
