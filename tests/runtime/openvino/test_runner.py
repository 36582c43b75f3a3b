"""Packages in the real OpenVINO: nightly, since the extension is built and models are compiled."""

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import moh_deploy
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.graph.forced_gates import force_gates
from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.openvino.runner import MOST_SHAPES, OpenVinoRunner
from tests.handmade_package import LAYER, vectors, write_package
from tests.kept_builds import COMPILER, ROOT
from tests.openvino_extension import install_extension
from tests.ops.cases import OP_CASES
from tests.projected_package import write_projected

pytestmark = pytest.mark.nightly

NODE = str(LAYER.node)
OPENVINO = Variant(runtime="openvino", kernels="require", threads=1)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_extension(monkeypatch, tmp_path)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


def opened(package: OnnxPackage, variant: Variant = OPENVINO) -> OpenVinoRunner:
    runner = open_runner(package, variant)
    assert isinstance(runner, OpenVinoRunner)
    return runner


def assert_right(runner: OpenVinoRunner, batch: int = 3, seq: int = 37) -> None:
    """Check a run of the handmade package against its recorded outputs."""
    run = vectors(batch=batch, seq=seq, seed=4)
    np.testing.assert_allclose(runner.run(run.inputs)["y"], run.outputs["y"], atol=1e-5)


def saved_op(case: Case, path: Path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Return a model of one node, which is saved, and its inputs."""
    model = single_node_model(case.op, case.input_types(), case.attributes)
    model.graph.node[0].name = case.op
    onnx.save(model, path)
    names = [spec.name for spec in OPS[case.op].inputs]
    given = dict(zip(names, case.inputs(), strict=False))
    return model, {name: array for name, array in given.items() if array is not None}


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("threads", [1, 2])
def test_nodes_run_on_our_kernels(package: OnnxPackage, threads: int):
    runner = opened(package, Variant(runtime="openvino", kernels="require", threads=threads))
    found = runner.describe()
    assert found.layer_impl == {NODE: "kernel"}
    assert found.runtime.startswith("OpenVINO 20")
    assert_right(runner, seq=150)


def test_projections_are_products_of_openvino(tmp_path: Path):
    package = write_projected(tmp_path / "package")
    run = package.vectors[0]
    found = opened(package).run(run.inputs)["y"]
    np.testing.assert_allclose(found, run.outputs["y"], atol=1e-4, rtol=1e-5)


def test_bodies_compute_the_same(package: OnnxPackage):
    runner = opened(package, Variant(runtime="openvino", kernels="off"))
    assert runner.describe().layer_impl == {NODE: "function"}
    assert_right(runner)


def test_a_model_is_compiled_once_for_a_shape_and_the_last_shapes_are_kept(package: OnnxPackage):
    runner = opened(package)
    compiled, compile_model = [], runner._core.compile_model
    runner._core.compile_model = lambda *given: compiled.append(given) or compile_model(*given)  # type: ignore[method-assign, func-returns-value]
    for seq in (3, 5, 3, 5):
        assert_right(runner, seq=seq)
    assert len(compiled) == 2
    for seq in range(6, 6 + MOST_SHAPES):
        runner.run(vectors(seq=seq).inputs)
    assert len(runner._requests) == MOST_SHAPES
    runner.run(vectors(seq=3).inputs)  # forgotten meanwhile
    assert len(compiled) == 3 + MOST_SHAPES


def test_gates_can_be_fed_and_inner_values_returned(package: OnnxPackage):
    fed = OPENVINO.edited(partial(force_gates, gates={"gates_0": np.dtype("float32")}))
    runner = opened(package, fed.returning(["heads"]))
    one = vectors()
    closed = {**one.inputs, "gates_0.forced": np.zeros_like(one.gates[0])}
    results = runner.run(closed)
    np.testing.assert_array_equal(results["y"], 0)
    np.testing.assert_array_equal(results["heads"], 0)


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_lower_precision_is_equal_within_its_rule(tmp_path: Path, package: OnnxPackage, to: str):
    moh_deploy.precision(package.root, to=to, output=tmp_path / "low")
    report = moh_deploy.verify(tmp_path / "low", runtime="openvino", kernels="require")
    assert report.equal, report.failure


@pytest.mark.usefixtures("all_cores")
def test_bfloat16_is_the_same_on_two_threads(tmp_path: Path, package: OnnxPackage):
    moh_deploy.precision(package.root, to="bfloat16", output=tmp_path / "low")
    low = OnnxPackage.open(tmp_path / "low")
    one = vectors(batch=3, seq=150, seed=4)
    both = [
        opened(low, Variant(runtime="openvino", kernels="require", threads=threads)).run(one.inputs)
        for threads in (1, 2)
    ]
    np.testing.assert_array_equal(both[0]["y"], both[1]["y"])


FAILING = """
#include "cpu/kernels.h"
#include <new>
namespace {
void fail(const moh::AttentionArgs&, moh::cpu::Compute, const moh::cpu::Parallel&) {
  throw std::bad_alloc();
}
const moh::cpu::Kernels kernels{"baseline", false, fail};
}
extern "C" const moh::cpu::Kernels* moh_cpu_kernels(const char*) { return &kernels; }
extern "C" const char* moh_cpu_instruction_sets() { return "baseline"; }
extern "C" const char* moh_cpu_version() { return VERSION; }
"""


def test_a_kernel_that_fails_is_noticed_though_openvino_swallows_it(
    tmp_path: Path, package: OnnxPackage
):
    library = tmp_path / "libfailing.so"
    command = [
        *(COMPILER, "-std=c++17", "-shared", "-fPIC", f'-DVERSION="{moh_deploy.__version__}"'),
        *(f"-I{ROOT / 'plugins'}", f"-I{ROOT / 'plugins' / 'include'}", "-x", "c++", "-"),
    ]
    subprocess.run([*command, "-o", str(library)], input=FAILING.encode(), check=True)
    one = vectors()
    failing = opened(package, Variant(runtime="openvino", kernels="require", library=library))
    with pytest.raises(
        BackendError, match=r"a kernel failed in OpenVINO: MoHAttention .*bad_alloc"
    ):
        failing.run(one.inputs)
    with pytest.raises(BackendError, match="a kernel failed"):
        failing.bound(one.inputs)()
    assert_right(opened(package))  # nothing of it is left to whoever runs next


def test_inputs_that_cannot_be_written_to_are_taken(package: OnnxPackage):
    run = vectors()
    mapped = {name: array.copy() for name, array in run.inputs.items()}
    for array in mapped.values():
        array.flags.writeable = False
    np.testing.assert_allclose(opened(package).run(mapped)["y"], run.outputs["y"], atol=1e-5)


OF_LENGTHS = [
    case for case in OP_CASES["MoHAttention"] if "nonpad" in case.why and case.dtype == "float32"
]


@pytest.mark.parametrize("case", OF_LENGTHS, ids=lambda case: case.name)
def test_lengths_of_a_cache_are_followed(case: Case, tmp_path: Path):
    path = tmp_path / "model.onnx"
    _, fed = saved_op(case, path)
    runner = open_runner(path, OPENVINO)
    (expected,) = OPS[case.op].reference(case.inputs(), case.attributes)
    np.testing.assert_allclose(runner.run(fed)["Y"], expected, atol=1e-5)
    fed["nonpad_kv_seqlen"] = fed["nonpad_kv_seqlen"] + 1000
    with pytest.raises(BackendError, match=r"nonpad_kv_seqlen\[0\] is 10\d\d; expected 0 to"):
        runner.run(fed)


def test_shapes_that_do_not_fit_are_refused_before_anything_runs(
    tmp_path: Path, package: OnnxPackage
):
    fed = OPENVINO.edited(partial(force_gates, gates={"gates_0": np.dtype("float32")}))
    one = vectors()
    runner = opened(package, fed)
    with pytest.raises(BackendError, match=r"gates is \[2, 4, 4\]; expected \[2, 3, 4\]"):
        runner.run({**one.inputs, "gates_0.forced": np.zeros((2, 4, 4), np.float32)})


@pytest.mark.parametrize(
    "variant",
    [Variant("openvino", optimize=False), Variant("openvino", round_results=True)],
    ids=["as written", "rounded"],
)
def test_what_openvino_has_no_word_for_is_refused(package: OnnxPackage, variant: Variant):
    with pytest.raises(ConfigError, match="OpenVINO always rewrites the graph"):
        opened(package, variant)


def test_an_empty_tensor_is_refused_and_does_not_end_the_process(package: OnnxPackage):
    with pytest.raises(BackendError, match=r"on an empty tensor: input 'x' is float32\[2, 0, 8\]"):
        opened(package).run(vectors(seq=0).inputs)


def test_choices_by_size_are_followed(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={"all": "sparse", "all[seq<=4]": "dense"})
    runner = opened(OnnxPackage.open(package.root))
    (layer,) = runner.describe().layer_runs
    assert layer.by_size == "dense if seq<=4, else sparse"
    for seq in (3, 9):
        assert_right(runner, seq=seq)


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Path):
    package = write_package(tmp_path / "package", external_data=True)
    runner = opened(package)
    shutil.rmtree(package.root)  # mapped, and not needed any more
    assert_right(runner)


def test_a_thousand_runs_take_no_memory(package: OnnxPackage):
    runner, one = opened(package), vectors(batch=8, seq=64)
    for _ in range(100):
        runner.run(one.inputs)
    before = anonymous_kilobytes()
    for _ in range(1000):
        runner.run(one.inputs)
    # A result that were kept each time would be 16 MiB.
    assert anonymous_kilobytes() - before < 4096


def anonymous_kilobytes() -> int:
    """Return how much this process has now; `ru_maxrss` is the most that it ever had."""
    (found,) = re.findall(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    return int(found)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_a_mask_of_integers_is_refused_as_in_onnxruntime(tmp_path: Path, dtype: str):
    case = next(case for case in OP_CASES["MoHAttention"] if len(case.inputs()) == 5)
    path = tmp_path / "model.onnx"
    model, fed = saved_op(case, path)
    (mask,) = (value for value in model.graph.input if value.name == "attn_mask")
    mask.type.tensor_type.elem_type = getattr(TensorProto, dtype.upper())
    onnx.save(model, path)
    fed["attn_mask"] = np.ones(fed["attn_mask"].shape, dtype)
    with pytest.raises(
        BackendError, match=r"attn_mask (holds integers|is of type .*); expected bool"
    ):
        open_runner(path, OPENVINO).run(fed)


def saved_graph(text: str, path: Path, **weights: np.ndarray) -> Path:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    model.graph.initializer.extend(stored)
    onnx.save(model, path)
    return path


def test_a_row_that_a_table_does_not_have_is_refused_as_in_onnxruntime(tmp_path: Path):
    path = saved_graph(
        "(int64[1, 2] ids) => (float[1, 2, 3] y) { y = Gather (table, ids) }",
        tmp_path / "model.onnx",
        table=np.ones((5, 3), np.float32),
    )
    for runtime in ("openvino", "onnxruntime"):
        runner = open_runner(path, Variant(runtime=runtime, kernels="off"))
        with pytest.raises(ConfigError, match=r"input 'ids' is 5 at \[0, 1\], expected -5 to 4"):
            runner.run({"ids": np.array([[4, 5]])})


def test_parts_of_an_input_may_be_looked_up_in_tables_of_other_sizes(tmp_path: Path):
    path = saved_graph(
        """(int64[1, 2] ids) => (float[1, 1, 3] y) {
            a, b = Split <axis = 1> (ids, halves)
            x = Gather (few, a)
            z = Gather (many, b)
            y = Add (x, z)
        }""",
        tmp_path / "model.onnx",
        halves=np.ones(2, np.int64),
        few=np.ones((5, 3), np.float32),
        many=np.ones((1000, 3), np.float32),
    )
    runner = open_runner(path, Variant(runtime="openvino", kernels="off"))
    assert runner.run({"ids": np.array([[3, 700]])})["y"].tolist() == [[[2, 2, 2]]]


def test_a_kernel_that_fails_on_constants_is_noticed_while_the_model_is_compiled(tmp_path: Path):
    path = tmp_path / "model.onnx"
    model, given = saved_op(OF_LENGTHS[0], path)
    given["nonpad_kv_seqlen"] = given["nonpad_kv_seqlen"] + 1000
    del model.graph.input[:]
    for name, array in given.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    # Something has to be an input.
    shift = helper.make_tensor_value_info("shift", TensorProto.FLOAT, [1])
    model.graph.input.append(shift)
    model.graph.node.append(helper.make_node("Add", ["Y", "shift"], ["moved"]))
    model.graph.output[0].name = "moved"
    onnx.save(model, path)
    with pytest.raises(BackendError, match=r"a kernel failed .* expected 0 to"):
        open_runner(path, OPENVINO).run({"shift": np.zeros(1, np.float32)})
